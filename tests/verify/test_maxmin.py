"""|z|, PReLU and MaxMin: what they are made of, and that none takes them for monotone."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable

import exact_values
import pytest
import torch
from exact_values import attack_exactly
from problems import Absolute, Function, MaxMinResidual, build, points, randomise
from random_networks import RandomNetwork, draw_network
from soundness import (
    attack_certificates,
    attack_lipschitz,
    attack_relaxation,
    ball_points,
    middle_threshold,
)
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.models import MaxMin
from greg_cert.verify import certify
from greg_cert.verify.bounds import crown, interval, native_engine
from greg_cert.verify.bounds.coupled import neurons
from greg_cert.verify.bounds.coupled.backward import bisect_balls, bound_rows, first_variables
from greg_cert.verify.bounds.coupled.ball_boxes import ball_boxes, layer_norms
from greg_cert.verify.bounds.coupled.charges import ProvenPrices
from greg_cert.verify.bounds.coupled.neurons import Variables
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.bounds.native_engine import NativeEngine, sign_unknown
from greg_cert.verify.graph.ops import Activation, Conv, Flatten, Input, Linear, forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import adjoint_interval, global_constant, local_lipschitz
from greg_cert.verify.radius import branch
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.run.diagnose import diagnose

NORMS = (2.0, math.inf)
SEEDS = (1, 2, 3, 5, 6)
SLOPES = (-1.0, -0.4, 0.3, 1.6, -2.5)


def chunks(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)


def splits(x: Tensor) -> Tensor:
    a, b = x.split(x.shape[1] // 2, dim=1)
    return torch.cat((torch.maximum(b, a), torch.minimum(a, b)), 1)


def slices(x: Tensor) -> Tensor:
    n = x.shape[1] // 2
    a, b = x[:, :n], x[:, n:]
    return torch.cat([a.max(b), a.min(other=b)], dim=1)


def narrow(x: Tensor) -> Tensor:
    n = x.shape[1] // 2
    a, b = x.narrow(1, 0, n), torch.narrow(x, 1, n, n)
    return torch.cat([a.maximum(b), b.minimum(a)], dim=1)


def minimum_first(x: Tensor) -> Tensor:
    a, b = torch.chunk(x, 2, 1)
    return torch.cat([torch.min(a, b), torch.max(a, b)], dim=1)


def neighbours(x: Tensor) -> Tensor:
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)


def stacked(x: Tensor) -> Tensor:
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([torch.max(a, b), torch.min(a, b)], dim=2).flatten(1, 2)


def stacked_halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.stack((torch.min(a, b), torch.max(a, b)), dim=1).view(x.shape)


SPELLINGS = (chunks, splits, slices, narrow, minimum_first, neighbours, stacked, stacked_halves)


def convolutional(*activations: nn.Module) -> nn.Module:
    """Two convolutions and a head, these activations behind the convolutions."""
    first, second = activations
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), first, nn.Conv2d(4, 6, 3, stride=2), second,
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    return randomise(model, torch.Generator().manual_seed(5)).double()


IMAGE = (2, 6, 6)
KINDS = [Input, Conv, Activation, Conv, Activation, Conv, Flatten, Linear]


def lower_bounds(model: nn.Module, x: Tensor, radius: float, norm: float, method: str) -> Tensor:
    graph = trace_model(model, tuple(x.shape[1:]))
    rows = torch.eye(graph.num_classes, dtype=torch.float64)
    rows = torch.cat([rows, -rows]).expand(len(x), -1, -1)
    radii = torch.full((len(x),), radius, dtype=torch.float64)
    return make_engine("native", graph).relax(x, radii, norm, method).lower(rows)


# --- The module, and how it is written ----------------------------------------------------------


def test_the_module_sorts_pairs_and_keeps_the_length_of_gradients() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0]], requires_grad=True)
    out = MaxMin()(x)
    assert out.tolist() == [[1.0, 3.0, 0.5, -2.0]]
    (gradient,) = torch.autograd.grad((out * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), x)
    assert gradient.tolist() == [[1.0, 4.0, 3.0, 2.0]]
    with pytest.raises(UsageError, match=r"even number of channels .* \(2, 3, 4, 4\)"):
        MaxMin()(torch.zeros(2, 3, 4, 4))


def test_rotations_fold_into_the_layers() -> None:
    graph = trace_model(convolutional(MaxMin(), MaxMin()), IMAGE)
    assert [type(node.op) for node in graph.nodes] == KINDS
    flat = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), MaxMin(), nn.Linear(4, 2))
    kinds = [type(node.op) for node in trace_model(flat.eval(), (3,)).nodes]
    assert kinds == [Input, Linear, Activation, Linear]


@pytest.mark.parametrize("function", SPELLINGS)
def test_spellings_are_the_same_node(function: Callable[..., Tensor]) -> None:
    model = convolutional(Function(function), Function(function))
    graph = trace_model(model, IMAGE)
    assert [type(node.op) for node in graph.nodes] == KINDS
    x = 3 * torch.randn(6, *IMAGE, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(forward_all(graph, x)[-1], model(x), rtol=1e-12, atol=1e-12)


def test_where_rotations_cannot_fold_they_are_layers_of_their_own() -> None:
    class Odd(nn.Module):
        """Every place that forbids it: input, sum, max pool, groups, norm, output, two readers."""

        def __init__(self) -> None:
            super().__init__()
            self.act, self.pool, self.norm = MaxMin(), nn.MaxPool2d(2), nn.BatchNorm2d(4)
            self.conv, self.res = nn.Conv2d(4, 4, 3, groups=2), MaxMinResidual(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.conv(self.act(x)))
            y = self.act(self.norm(self.act(self.pool(y))) + self.pool(y))
            return self.act(self.act(self.res(y)).flatten(1))  # type: ignore[no-any-return]

    model = randomise(Odd(), torch.Generator().manual_seed(1)).double()
    graph = trace_model(model, (4, 6, 6))
    x = points((4, 6, 6), 3)
    assert torch.allclose(forward_all(graph, x)[-1], model(x), rtol=1e-11, atol=1e-12)
    radii = torch.tensor([0.01, 0.1, 0.6]).double()
    assert attack_relaxation(graph, "native", x, radii, 2.0, "crown-ibp") > 0


def test_maxima_that_are_no_pairs_are_written_with_relu() -> None:
    def maxout(x: Tensor, first: nn.Module, head: nn.Module) -> Tensor:
        a, b, c = first(x).split(2, 1)
        both = torch.max(torch.max(a, b), c), torch.min(b, c), torch.minimum(a, a)
        return head(torch.cat(both, 1))  # type: ignore[no-any-return]

    model = Function(maxout, nn.Linear(3, 6), nn.Linear(6, 2))
    model = randomise(model, torch.Generator().manual_seed(2)).double()
    x = points((3,), 5)
    graph = trace_model(model, (3,))
    assert torch.allclose(forward_all(graph, x)[-1], model(x), rtol=1e-12, atol=1e-13)
    radii = torch.linspace(0.05, 1.0, 5).double()
    assert attack_relaxation(graph, "native", x, radii, 2.0) > 0


def test_parts_of_what_was_changed_in_place_are_refused() -> None:
    def stale(x: Tensor, first: nn.Module) -> Tensor:
        parts = (z := first(x)).chunk(2, 1)
        z.relu_()
        return parts[0]  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedModelError, match="after an operation in place"):
        trace_model(Function(stale, nn.Linear(3, 4)), (3,))


@pytest.mark.parametrize("slope", [*SLOPES, 0.0, 1.0])
def test_every_slope_is_the_same_function(slope: float) -> None:
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).unsqueeze(1)
    for layer in (nn.LeakyReLU(slope), nn.PReLU(1, slope)):
        model = nn.Sequential(nn.Linear(1, 1), layer).double()
        graph = trace_model(model, (1,))
        assert all(abs(n.op.least_slope) <= 1 for n in graph.nodes if isinstance(n.op, Activation))
        assert torch.allclose(forward_all(graph, x)[-1], model(x), rtol=1e-14, atol=1e-15)


def test_the_layer_table_names_them() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), MaxMin(), nn.Linear(4, 2), Absolute())
    found = diagnose(model, (1, 2, 2))
    kinds = [layer.kind for layer in found.layers]
    assert kinds[-3:] == ["absolute value or identity", "linear", "absolute value"]
    assert found.layers[2].norm == pytest.approx(
        float(torch.linalg.matrix_norm(model[1].weight.detach(), 2))
    )  # type: ignore[arg-type]


# --- Exact cases and metamorphic ones ------------------------------------------------------------


def test_by_hand() -> None:
    low, high = torch.tensor([-1.0, -3.0, 1.0, -3.0, 0.0]), torch.tensor([3.0, 1.0, 2.0, -1.0, 0.0])
    lines = crown.relax_activation(low, high, -1.0)
    assert [line.tolist() for line in lines] == [
        [1.0, -1.0, 1.0, -1.0, 1.0], [0.5, -0.5, 1.0, -1.0, 1.0], [1.5, 1.5, 0.0, 0.0, 0.0],
    ]  # fmt: skip
    box = interval.forward_interval(Activation(-1.0), [(low, high)])
    assert [end.tolist() for end in box] == [[0.0, 0.0, 1.0, 1.0, 0.0], [3.0, 3.0, 2.0, 3.0, 0.0]]
    slopes = interval.activation_derivative(low, high, -1.0)
    assert [s.tolist()[:4] for s in slopes] == [[-1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, -1.0]]
    assert interval.steepest(Activation(-1.0), low, high).tolist() == [1.0] * 5


def test_the_radius_of_an_absolute_value() -> None:
    """S = 2|w·x + b| − 1 reaches γ where |w·x + b| does."""
    model = nn.Sequential(nn.Linear(2, 1), Absolute(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        model[0].bias.fill_(-1.0)
        model[2].weight.fill_(-2.0)
        model[2].bias.fill_(1.0)
    x = torch.tensor([[0.2, 0.2], [0.0, 0.3], [0.1, 0.1]]).double()
    threshold = 1.5  # |z| <= 1.25
    z = (x @ torch.tensor([3.0, 4.0]).double() - 1.0).abs()
    truth = (1.25 - z) / 5
    methods = "crown,branch,lipschitz,sdp-crown"
    result = certify(model, x, threshold, method=methods, max_radius=2.0, attack_restarts=1)
    for name in ("radius_crown", "radius_branch", "radius_sdp_crown"):
        assert torch.allclose(result.other[name], truth, rtol=2e-2), name
    assert torch.allclose(result.radius_lipschitz, truth, rtol=5e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_rotated_by_hand_has_the_same_bounds(norm: float) -> None:
    """Bounds of MaxMin are those of |.| beside the identity between layers that were rotated."""

    class Rotated(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.layers = nn.ModuleList([copy.deepcopy(model[i]) for i in (0, 2, 4)])  # type: ignore[index]
            with torch.no_grad():
                for before, after in zip(self.layers, self.layers[1:], strict=False):
                    n = len(before.weight) // 2  # type: ignore[arg-type]
                    eye = torch.eye(n, dtype=torch.float64)
                    turn = math.sqrt(0.5) * torch.cat(
                        [torch.cat([eye, eye], 1), torch.cat([eye, -eye], 1)]
                    )
                    before.weight.copy_(turn @ before.weight)  # type: ignore[operator]
                    before.bias.copy_(turn @ before.bias)  # type: ignore[operator]
                    after.weight.copy_(after.weight @ turn)  # type: ignore[operator]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                s, d = layer(x).chunk(2, 1)
                x = torch.cat([s, d.abs()], 1)
            return self.layers[-1](x)  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Linear(5, 8), MaxMin(), nn.Linear(8, 6), MaxMin(), nn.Linear(6, 3))
    model = randomise(model, torch.Generator().manual_seed(9)).double()
    x = points((5,), 4)
    for radius in (0.05, 0.3):
        ours = lower_bounds(model, x, radius, norm, "crown")
        theirs = lower_bounds(Rotated(model), x, radius, norm, "crown")
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_relu_as_half_of_z_and_its_size_has_the_same_bounds() -> None:
    layers = nn.ReLU(), Function(lambda z: (z + z.abs()) / 2)
    relu, half = (convolutional(layer, copy.deepcopy(layer)) for layer in layers)
    x = points(IMAGE, 3)
    for norm in NORMS:
        ours, theirs = (lower_bounds(m, x, 0.1, norm, "crown") for m in (half, relu))
        assert bool((theirs > lower_bounds(relu, x, 0.2, norm, "crown")).all())
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
        constants = [global_constant(trace_model(m, IMAGE), "energy", norm) for m in (half, relu)]
        assert constants[0] == pytest.approx(constants[1], rel=1e-9)


def test_a_maximum_is_no_shortcut_where_the_slope_is_negative() -> None:
    """b + |d| is as steep as b + d and b − d, not as b: what holds for ReLU would be too little."""

    a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[1.0, 0.0]]))
        b.weight.copy_(torch.tensor([[2.0, 0.0]]))
    model = Function(lambda x, a, b: (y := b(x)) + (a(x) - y).abs(), a, b).double()
    found = global_constant(trace_model(model, (2,)), "energy", 2.0)  # 2x + |x − 2x|: up to 3
    assert found >= 3.0


@pytest.mark.parametrize("norm", NORMS)
def test_auto_lirpa_has_the_same_lines(norm: float) -> None:
    model, shape = build("bent")
    graph, x = trace_model(model, shape), points(shape, 3)
    radii = torch.tensor([0.05, 0.2, 0.5]).double()
    rows = torch.eye(3, dtype=torch.float64).expand(3, -1, -1)
    ours = make_engine("native", graph).relax(x, radii, norm).lower(rows)
    theirs = make_engine("auto-lirpa", graph).relax(x, radii, norm).lower(rows)
    assert torch.allclose(ours[:2], theirs[:2], rtol=1e-6, atol=1e-6)
    assert bool((ours >= theirs - 1e-6).all())  # it knows intervals besides


def test_splits_prove_nearly_all_of_a_small_network() -> None:
    model, shape = build("max_min")
    model, x = model.double(), points(shape, 4, seed=3)
    threshold = middle_threshold(model, x)
    found = certify(
        model, x, threshold, side="ood", method="crown,branch", max_radius=2.0, attack_restarts=1
    )
    share = (found.other["radius_branch"] / found.radius_attack)[found.radius_attack > 0]
    assert float(share.min()) > 0.9
    assert bool((found.other["radius_branch"] >= 0.98 * found.other["radius_crown"]).all())


# --- What is the identity costs nothing -----------------------------------------------------------


def test_identities_are_neither_bounded_nor_split() -> None:
    model, shape = build("max_min")
    graph, x = trace_model(model, shape), points(shape, 2)
    engine = NativeEngine(graph)
    made = engine.relax(x, torch.full((2,), 0.5).double(), 2.0)
    row = torch.ones(2, graph.num_classes).double()
    costs = branch._given_away(made, row).split(
        [math.prod(graph.nodes[i].shape) for i in graph.activations], 1
    )
    seen = 0
    for i, cost in zip(graph.activations, costs, strict=True):
        op = graph.nodes[i].op
        assert isinstance(op, Activation)
        assert op.bends is not None
        same = ~op.bends.expand(graph.nodes[i].shape).flatten()
        assert int(same.sum()) * 2 == same.numel()
        assert not cost[:, same].any()
        low, high = made.preactivations[i]
        assert not sign_unknown(op, low, high).flatten(1)[:, same].any()
        seen += int((cost[:, ~same] > 0).sum())
    assert seen > 0


def test_identities_have_no_part_in_coupled_bounds() -> None:
    model, shape = build("max_min")
    graph, x = trace_model(model, shape), points(shape, 2)
    moved = ball_boxes(graph, layer_norms(graph), x, torch.full((2,), 0.3).double())
    rows = torch.eye(graph.num_classes)[:1].expand(2, 1, -1).double()
    variables = first_variables(graph, moved, 1)
    for i in graph.activations:
        variables["charge", i] = torch.zeros(2, 1, *graph.nodes[i].shape).double()
        variables["ball", i] = torch.zeros(2, 1).double()
    other = dict(variables)
    for kind, i in variables:
        op = graph.nodes[i].op
        assert isinstance(op, Activation)
        if kind != "ball" and op.bends is not None:
            moved_away = variables[kind, i] + 0.7 * (~op.bends)
            assert not torch.equal(moved_away, variables[kind, i])
            other[kind, i] = moved_away
    bounds = [bound_rows(graph, moved, rows, v, ProvenPrices()) for v in (variables, other)]
    for name in ("offset", "slope", "curvature"):
        one, two = (getattr(bound, name) for bound in bounds)
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("charged", [0, 1, 2])
def test_charges_that_end_at_any_activation_are_paid_there(charged: int) -> None:
    """Also by neurons that are the identity: they pass charges on only where there is a charge."""
    model, shape = build("max_min")
    graph, x = trace_model(model, shape), points(shape, 2)
    radii = torch.tensor([0.3, 1.0]).double()
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    rows = torch.eye(graph.num_classes).expand(2, -1, -1).double()
    variables = first_variables(graph, moved, graph.num_classes)
    i = graph.activations[-1 - charged]
    like = torch.zeros(2, graph.num_classes, *graph.nodes[i].shape).double()
    variables["charge", i] = like + math.log(3.0)
    bound = bound_rows(graph, moved, rows, variables, ProvenPrices())
    for y in ball_points(x, radii, 2.0):
        change = (y - x).flatten(1).square().sum(1, keepdim=True)
        value = forward_all(graph, y)[-1]
        linear = bound.offset + (bound.slope.flatten(2) @ y.flatten(1).unsqueeze(2)).squeeze(2)
        assert bool((value >= linear - bound.curvature / 2 * change - 1e-9).all())


# --- Random networks ------------------------------------------------------------------------------


def bent(seed: int) -> RandomNetwork:
    """The random network of that seed with other activations, MaxMin where channels are even."""
    source = random.Random(seed)
    network = draw_network(source)
    channels: dict[str, int] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args: channels.update({name: args[0].shape[1]})

    names = [n for n, m in network.model.named_modules() if isinstance(m, (nn.ReLU, nn.LeakyReLU))]
    hooks = [network.model.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    with torch.no_grad():
        network.model(network.inputs(2))
    for hook in hooks:
        hook.remove()
    for name in names:
        parent, _, child = name.rpartition(".")
        many = torch.randn(channels[name], generator=torch.Generator().manual_seed(seed))
        prelu = nn.PReLU(channels[name])
        prelu.weight.data.copy_(many)
        choices = [Absolute(), nn.LeakyReLU(source.choice(SLOPES)), prelu]
        if channels[name] % 2 == 0:
            choices += 4 * [MaxMin()]
        setattr(network.model.get_submodule(parent), child, source.choice(choices).double())
    return RandomNetwork(network.model.double().eval(), network.shape, network.seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_bound_of_a_random_network_gives_way(seed: int) -> None:
    network = bent(seed)
    graph, x = network.graph, network.inputs(3)
    radii = torch.tensor([0.02, 0.3, 2.0]).double()
    norm, side = NORMS[seed % 2], ("id", "ood")[seed // 2 % 2]
    scale = 1.0 if norm == 2.0 else 0.25
    for method in ("crown-ibp", "alpha-crown"):
        assert attack_relaxation(graph, "native", x, scale * radii, norm, method) > 0
    if seed % 2:
        assert attack_relaxation(graph, "auto-lirpa", x, scale * radii, norm) > 0
    assert attack_lipschitz(network.model, graph, "native", x, 0.2 * scale, norm) > 0
    methods = "crown,alpha-crown,branch,lipschitz" + (",sdp-crown" if norm == 2.0 else "")
    threshold = middle_threshold(network.model, x)
    result = certify(
        network.model, x, threshold, side=side, norm=norm, method=methods, max_radius=1.0,
        rounds=4, tolerance=0.05, attack_restarts=1, attack_steps=8, coupled=CoupledEffort(3, 6),
        splits=3,
    )  # fmt: skip
    attack_certificates(network.model, x, threshold, side, norm, result)


@pytest.mark.parametrize(("seed", "slope"), [(0, -1.0), (3, -0.4), (6, -1.0), (9, -1.0)])
def test_nothing_that_cancels_gives_way(
    seed: int, slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fractions: rounding is allowed for where |z| takes the place of ReLU."""
    before = exact_values.cancelling_network

    def network(seed: int) -> nn.Module:
        model = before(seed)
        assert isinstance(model, nn.Sequential)
        layers = [nn.LeakyReLU(slope) if isinstance(m, nn.ReLU) else m for m in model]
        return nn.Sequential(*layers).eval()

    monkeypatch.setattr(exact_values, "cancelling_network", network)
    tried = attack_exactly(seed, NORMS[seed % 2], "ood")
    tried += attack_exactly(seed, 2.0, "id", "auto-lirpa")
    assert tried > 0


# --- The checks above can fail --------------------------------------------------------------------


def _monotone(op: object, operands: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if isinstance(op, Activation):
        return op.apply(operands[0][0]), op.apply(operands[0][1])
    return image_before(op, operands)  # type: ignore[arg-type]


def _never_negative(low: Tensor, high: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    smallest, largest = derivative_before(low, high, slope)
    return smallest.clamp(min=0.0), largest


def _largest_derivative(op: Activation, low: Tensor, high: Tensor) -> Tensor:
    return derivative_before(low, high, op.negative_slope)[1].clamp(min=0.0)


def _relu_chord(low: Tensor, high: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    slope_low, slope_high, _ = lines_before(low, high, slope)
    return slope_low, slope_high, lines_before(low, high, 0.0)[2]


image_before = interval.forward_interval
derivative_before = interval.activation_derivative
lines_before = crown.relax_activation


@pytest.mark.parametrize(
    ("place", "attribute", "wrong"),
    [
        (native_engine, "forward_interval", _monotone),
        (local_lipschitz, "steepest", _largest_derivative),
        (crown, "relax_activation", _relu_chord),
    ],
    ids=["image", "steepness", "chord"],
)
def test_a_wrong_bound_is_found(
    place: object, attribute: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape = build("bent")
    model, x = model.double(), points(shape, 3, seed=11)
    graph, radii = trace_model(model, shape), torch.tensor([0.02, 0.3, 2.0]).double()

    def attack_all() -> None:
        for method in ("crown", "crown-ibp"):
            attack_relaxation(graph, "native", x, radii, 2.0, method)
        for radius in (0.05, 0.5):
            attack_lipschitz(model, graph, "native", x, radius, 2.0)

    attack_all()
    monkeypatch.setattr(place, attribute, wrong)
    with pytest.raises(AssertionError, match="bound"):
        attack_all()


def test_a_wrong_derivative_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(1, 1), torch.tensor([[0.05]]).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    model = Function(lambda x, layer: (z := layer(x)).abs() - z, layer).double()  # −2 below zero
    graph = trace_model(model, (1,))
    attack_lipschitz(model, graph, "native", x, 0.4, 2.0)
    monkeypatch.setattr(adjoint_interval, "activation_derivative", _never_negative)
    with pytest.raises(AssertionError, match="than its bound"):
        attack_lipschitz(model, graph, "native", x, 0.4, 2.0)


def test_a_minimiser_of_relu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 6), Absolute(), nn.Linear(6, 2))
    model = randomise(model, torch.Generator().manual_seed(4)).double()
    graph, x, radii = trace_model(model, (4,)), points((4,), 2), torch.ones(2).double()
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    rows = torch.eye(2).expand(2, -1, -1).double()
    start = first_variables(graph, moved, 2)
    balls = bisect_balls(graph, moved, rows, start)
    generator = torch.Generator().manual_seed(0)  # of chords both ends are alike
    start = {k: v + 0.5 * torch.randn(v.shape, generator=generator) for k, v in start.items()}
    variables: Variables = {**start, **{("ball", i): mu for i, mu in balls.items()}}

    def least() -> Tensor:
        """Values less their bounds, at the lowest of many points."""
        bound = bound_rows(graph, moved, rows, variables, ProvenPrices())
        gaps = []
        for y in ball_points(x, radii, 2.0, draws=300):
            linear = bound.offset + (bound.slope.flatten(2) @ y.flatten(1).unsqueeze(2)).squeeze(2)
            gaps.append(forward_all(graph, y)[-1] - linear)
        return torch.stack(gaps).amin(0)

    assert bool((least() >= -1e-9).all())
    honest = neurons._minimiser

    def of_relu(*arguments: object) -> Tensor:
        return honest(*arguments[:-1], Activation(0.0))  # type: ignore[arg-type]

    monkeypatch.setattr(neurons, "_minimiser", of_relu)
    assert not bool((least() >= -1e-9).all())
