"""The canonical graph is the model, and what is no such graph is refused by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from problems import ZOO, Arithmetic, Cancelling, Function, build, points
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.bounds.lirpa.rebuild import RebuiltModule
from greg_cert.verify.graph.ops import Add, Conv, Graph, Linear, forward_all
from greg_cert.verify.graph.trace import trace_model


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = copy.deepcopy(model).double().eval()(x.clone())
    return out


def check_values(graph: Graph, model: nn.Module, x: Tensor) -> None:
    out = forward_all(graph, x)[-1]
    torch.testing.assert_close(out, logits_of(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_graph_equals_the_evaluated_model(name: str, training: bool) -> None:
    model, shape = build(name)
    model.train(training)
    graph = trace_model(model, shape)
    x = points(shape, 7, seed=5) * 6 - 2  # well outside of [0, 1] too
    expected = logits_of(model, x)
    scale = expected.abs().max()
    values = forward_all(graph, x)
    assert (values[-1] - expected).abs().max() <= 1e-12 * scale
    assert (RebuiltModule(graph)(x) - expected).abs().max() <= 1e-12 * scale
    assert [tuple(v.shape[1:]) for v in values] == [n.shape for n in graph.nodes]
    assert graph.num_classes == expected.shape[1]
    assert graph.input_shape == shape
    assert graph.dtype == torch.float64


@pytest.mark.parametrize("name", ["conv_batchnorm", "registry_mlp", "arithmetic"])
def test_tracing_leaves_the_model_as_it_was(name: str) -> None:
    model, shape = build(name)
    model.train()
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    flags = {n: m.training for n, m in model.named_modules()}
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trace_model(model, shape)
    assert flags == {n: m.training for n, m in model.named_modules()}
    assert parameter.requires_grad
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == before[key].dtype, key
        assert torch.equal(tensor, before[key]), key


def test_later_changes_of_the_model_do_not_reach_the_graph() -> None:
    model, shape = build("mlp")
    graph = trace_model(model, shape)
    x = points(shape, 2)
    before = forward_all(graph, x)[-1]
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert torch.equal(forward_all(graph, x)[-1], before)


def test_batchnorm_is_folded_where_a_layer_comes_before_it() -> None:
    model, shape = build("conv_batchnorm")
    kinds = [type(n.op).__name__ for n in trace_model(model, shape).nodes]
    assert kinds == ["Input", "Conv", "Activation", "Conv", "Activation", "Flatten", "Linear"]


def test_batchnorm_is_not_folded_into_a_layer_that_others_read() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(0.7)  # type: ignore[union-attr]
    norm.running_var.fill_(4.0)  # type: ignore[union-attr]
    conv = nn.Conv2d(2, 2, 1)
    model = Function(lambda x, conv, norm: (norm(y := conv(x)) + y).flatten(1), conv, norm).eval()
    check_values(trace_model(model, (2, 3, 3)), model, points((2, 3, 3), 4))


def test_rebuilt_module_begins_with_an_affine_layer() -> None:
    for name in ("relu_first", "max_pool_3", "concatenation", "steps"):
        model, shape = build(name)
        graph = trace_model(model, shape)
        rebuilt = RebuiltModule(graph)
        readers = graph.consumers()[0]
        alone = len(readers) == 1 and isinstance(graph.nodes[readers[0]].op, (Conv, Linear))
        assert (rebuilt.entry is None) == alone, name


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d((2, 3), (1, 2), (0, 1)),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.AdaptiveAvgPool2d((3, None)),
        nn.MaxPool2d((1, 2)),
        nn.MaxPool2d(4),  # does not divide 6: the rest is dropped
        nn.MaxPool2d(4, ceil_mode=True),  # or else makes a smaller window
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d((2, 3), (1, 2), (0, 1), dilation=(2, 1)),
        nn.MaxPool2d(1, 2),
        nn.Conv2d(2, 2, 3, padding="valid"),
        nn.Conv2d(2, 4, (1, 3), padding="same", groups=2),
        nn.Dropout2d(0.5),
        nn.LeakyReLU(1.0),
        nn.Identity(),
    ],
    ids=str,
)
def test_layer_settings(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Flatten())
    check_values(trace_model(model, (2, 6, 6)), model, points((2, 6, 6), 3, seed=1) - 0.5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(F.leaky_relu(x, 0.2), 2).flatten(1),
        lambda x: F.avg_pool2d(x, 2, stride=1, padding=1).reshape(x.size(0), -1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze((2, 3)),
        lambda x: torch.flatten(F.dropout(x, 0.5, training=False), 1),
        lambda x: x.mean(dim=(-1, -2)),
        lambda x: torch.mean(x, [2, 3], keepdim=True).view(x.shape[0], -1),
        lambda x: (x + x - 3 * x).flatten(1),
        lambda x: x.clamp(-0.2, 0.3).flatten(1),
        lambda x: torch.clip(x, max=0.1).flatten(1),
        lambda x: torch.clamp(x, torch.tensor(-0.1)).flatten(1),
        lambda x: (x.clamp_min(0.1) - x.clamp_max(max=-0.1)).flatten(1),
        lambda x: F.hardtanh(x, -0.1, math.inf).flatten(1),
        lambda x: torch.sub(torch.mul(x, 2.0), torch.tensor([[[1.0]], [[2.0]]])).flatten(1),
    ],
)
def test_functional_forms(function: Callable[..., Tensor]) -> None:
    model = Function(function)
    check_values(trace_model(model, (2, 4, 4)), model, points((2, 4, 4), 3, seed=2) - 0.5)


def expression(function: Callable[..., Tensor]) -> nn.Module:
    """A model on (2, 6, 6) images from one expression in what a convolution gives, and x."""
    conv = nn.Conv2d(2, 2, 3, padding=1)
    return Function(lambda x, conv: function(conv(x), x).flatten(1), conv)


def residual(branch: nn.Module, first: bool) -> nn.Module:
    """x + branch(x), or branch(x) + x."""
    return Function(lambda x, b: x + b(x) if first else b(x) + x, branch)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("branch", "sums"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 0),
        (nn.Conv2d(4, 4, (5, 1), padding=(2, 0), bias=False), 0),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), 0),
        (nn.Conv2d(4, 4, 1, groups=4), 0),
        (nn.AvgPool2d(3, stride=1, padding=1), 0),
        (nn.Conv2d(4, 4, 2, padding=1, dilation=2), 1),  # no tap of the kernel is the pixel itself
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), 1),
    ],
)
def test_a_linear_residual_branch_is_one_layer(branch: nn.Module, sums: int, first: bool) -> None:
    torch.manual_seed(2)
    block = residual(branch, first)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), block, nn.ReLU(), nn.Flatten(), nn.Linear(100, 3))
    graph = trace_model(model, (2, 5, 5))
    assert sum(isinstance(n.op, Add) for n in graph.nodes) == sums
    check_values(graph, model, points((2, 5, 5), 5, seed=3) * 4 - 2)


def test_a_linear_residual_block_of_vectors_is_one_layer() -> None:
    layers = (nn.Linear(3, 4), residual(nn.Linear(4, 4), True), nn.ReLU(), nn.Linear(4, 2))
    model = nn.Sequential(*layers)
    graph = trace_model(model, (3,))
    assert not any(isinstance(n.op, Add) for n in graph.nodes)
    check_values(graph, model, points((3,), 5, seed=3))


UNSUPPORTED = (
    nn.Softmax(dim=1), nn.Mish(), nn.SELU(), nn.Hardswish(), nn.ELU(0.5), nn.LeakyReLU(math.nan),
    nn.LeakyReLU(math.inf), nn.Hardtanh(-1.0, math.nan), nn.Softplus(threshold=5.0),
    nn.Softplus(beta=0.0), nn.MaxPool2d(3, 2, return_indices=True), nn.AdaptiveMaxPool2d(4),
    nn.AvgPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(4), nn.BatchNorm2d(2, track_running_stats=False), nn.Linear(6, 6),
    nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.LayerNorm(6), nn.InstanceNorm2d(2),
)  # fmt: skip


@pytest.mark.parametrize("layer", UNSUPPORTED, ids=str)
def test_unsupported_layers_are_named_beside_what_is_supported(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), layer, nn.Flatten())
    named = rf"'1' \({type(layer).__name__}\).*Softplus, SiLU, GELU"
    with pytest.raises(UnsupportedModelError, match=named):
        trace_model(model, (2, 6, 6))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda y, x: x * y, "mul"),
        (lambda y, x: y / (x + 2), "truediv"),
        (lambda y, x: 1.0 / (x + 2), "truediv"),
        (lambda y, x: y.exp(), "exp"),
        (lambda y, x: y.sign(), "sign"),
        (lambda y, x: y.clamp(1, 0), "clamp.*its limits are 1.0 and 0.0"),
        (lambda y, x: y.clamp(torch.zeros(6)), "clamp.*not one number"),
        (lambda y, x: y.clamp(x, x + 1), "clamp.*min not to be computed from the input"),
        (lambda y, x: y.clamp(max=x), "clamp.*max not to be computed from the input"),
        (lambda y, x: F.conv2d(y, x[:, :2]), "conv2d.*weight not to be computed from the input"),
        (lambda y, x: y.flip(3), "flip"),
        (lambda y, x: y.transpose(2, 3), "transpose"),
        (lambda y, x: y.mean(), "mean"),
        (lambda y, x: y.mean(0, keepdim=True) + x, "mean"),
        (lambda y, x: y - y.max(), "max"),
        (lambda y, x: y + x.sum().item(), "sum"),
        (lambda y, x: F.dropout(y, 0.5), "dropout"),
        (lambda y, x: F.dropout(y, 0.5, True), "dropout"),
        (lambda y, x: torch.cat([y, x], 2), "cat"),
        (lambda y, x: torch.add(y, x, alpha=2), "add"),
        (lambda y, x: y + torch.arange(6.0), "add"),  # varies within a channel
        (lambda y, x: y + y[:, :1], "add"),
        (lambda y, x: y + y[:, :, :1], "getitem.*whole channels.*models.MaxMin"),
        (lambda y, x: y + y[:1], "getitem.*whole channels"),
        (lambda y, x: y[:, 0], "getitem.*whole channels"),
        (lambda y, x: torch.max(y, 1)[0], "max.*not a tensor.*models.MaxMin"),
        (lambda y, x: torch.max(y, torch.zeros(())), "max.*argument 1"),
        (lambda y, x: y.chunk(2, 2)[0], "chunk.*whole channels"),
        (lambda y, x: y.sort(1)[0], "sort.*not a tensor"),
        (lambda y, x: torch.stack([y, x], 2).flatten(1, 2), "flatten.*stack.*models.MaxMin"),
        (lambda y, x: torch.stack([y, x], 4).view(y.shape[0], 4, 6, 6), "view.*stack"),
        (lambda y, x: torch.stack([y, x], 1)[0], "getitem.*stack"),
        (lambda y, x: torch.stack([y, x], 1).relu(), "relu.*computed from the input"),
        (lambda y, x: torch.maximum(y, y[:, :1]), "maximum.*broadcast"),
        (lambda y, x: y if x.sum() > 0 else -y, "cannot trace Function to a static graph"),
        (lambda y, x: y * float(x.sum()), "cannot trace Function to a static graph"),
        (lambda y, x: y + int(x[0, 0, 0, 0] > 0.5), "cannot trace Function to a static graph"),
    ],
)
def test_unsupported_expressions_are_named(function: Callable[..., Tensor], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        trace_model(expression(function), (2, 6, 6))


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return x + other

    with pytest.raises(UnsupportedModelError, match="'other' is a second one"):
        trace_model(Two(), (4,))


def test_division_by_zero_is_refused() -> None:
    model = Arithmetic(nn.Flatten(), 2)
    model.get_buffer("std")[0] = 0.0
    with pytest.raises(UnsupportedModelError):
        trace_model(model, (2, 3, 3))


def test_a_subclass_with_its_own_forward_is_traced_through() -> None:
    class Exponential(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input.exp()

    with pytest.raises(UnsupportedModelError, match="exp"):
        trace_model(nn.Sequential(nn.Linear(3, 3), Exponential()), (3,))


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(2, 2, 3)), nn.Sequential(nn.Flatten(0))],
    ids=["images as output", "batch flattened away"],
)
def test_outputs_that_are_not_logits_are_refused(model: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError):
        trace_model(model, (2, 6, 6))


def test_a_model_that_ignores_its_input_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(x.shape[0], 3)

    with pytest.raises(UnsupportedModelError, match="logits"):
        trace_model(Constant(), (4,))


def test_the_cancelling_network_keeps_its_zero() -> None:
    graph = trace_model(Cancelling(), (2,))
    x = points((2,), 4)
    zeros = [v for n, v in zip(graph.nodes, forward_all(graph, x), strict=True) if n.name == "relu"]
    assert len(zeros) == 1
    assert torch.equal(zeros[0], torch.zeros(4, 1, dtype=torch.float64))
