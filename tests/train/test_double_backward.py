"""The cheap second derivatives against PyTorch's own, which gradgradcheck confirms elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.models import build_model
from greg_cert.scores import energy
from greg_cert.train.objective.double_backward import EfficientDoubleBackward

F64 = torch.float64
Op = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64).requires_grad_()


def channels_last(x: Tensor) -> Tensor:
    return x.detach().to(memory_format=torch.channels_last).requires_grad_()


def second_order(op: Op, tensors: list[Tensor], cheap: bool) -> list[Tensor]:
    """Value, first derivatives by all, and derivatives of ⟨ones-ish, ∇_x⟩² by all."""
    mode = EfficientDoubleBackward()
    with mode if cheap else nullcontext():
        out = op(*tensors)
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=F64).view_as(out)
    score = (out * weights).sum() + (out**3 * weights).sum()  # not linear in the output
    first = torch.autograd.grad(score, tensors, retain_graph=True)
    by_x = (
        mode.input_gradient(score, tensors[0])
        if cheap
        else torch.autograd.grad(score, tensors[0], create_graph=True)[0]
    )
    probe = torch.linspace(2.0, -1.0, by_x.numel(), dtype=F64).view_as(by_x)
    loss = (by_x * probe).sum() + by_x.square().sum()
    second = torch.autograd.grad(loss, tensors, materialize_grads=True)
    return [out, *first, by_x, *second]


def assert_same(op: Op, tensors: list[Tensor]) -> None:
    ours, theirs = (second_order(op, tensors, cheap) for cheap in (True, False))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert all(float(t.detach().norm()) > 0 for t in ours[-2:])


@pytest.mark.parametrize("lies_last", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("maps", "kernel", "options"),
    [
        ((3, 4, 7, 6), (6, 4, 3, 3), {"stride": 2, "padding": 1}),
        ((3, 4, 7, 6), (6, 4, 1, 1), {"stride": 2}),
        ((3, 4, 7, 6), (6, 4, 3, 2), {"dilation": 2}),
        ((3, 4, 7, 6), (8, 4, 3, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
        ((3, 4, 7, 6), (8, 4, 3, 3), {"padding": "same"}),
        ((3, 4, 7, 6), (8, 1, 3, 3), {"groups": 4, "stride": 2}),
        ((3, 4, 5, 5), (4, 2, 3, 3), {"groups": 2}),
        ((3, 1, 5, 5), (4, 1, 3, 3), {"padding": 1}),
        ((1, 1, 5, 5), (1, 1, 3, 3), {}),
        ((3, 4, 3, 3), (6, 4, 3, 3), {}),
    ],
)
def test_convolution_in_any_layout(
    maps: tuple[int, ...],
    kernel: tuple[int, ...],
    options: dict[str, Any],
    lies_last: tuple[bool, bool],
) -> None:
    tensors = [normal(*maps), normal(*kernel, seed=1), normal(kernel[0], seed=2)]
    for i, last in enumerate(lies_last):
        tensors[i] = channels_last(tensors[i]) if last else tensors[i]
    assert_same(lambda x, w, b=None: F.conv2d(x, w, b, **options), tensors)
    assert_same(lambda x, w, b=None: F.conv2d(x, w, b, **options), tensors[:2])


@pytest.mark.parametrize("channels", [1, 3])
def test_feature_maps_lie_with_channels_last_and_gradients_as_their_tensors(channels: int) -> None:
    x, w = normal(2, channels, 5, 6), normal(4, channels, 3, 3, seed=1)
    with EfficientDoubleBackward():
        out = F.conv2d(x, w).relu()
    assert out.stride() == (4 * 3 * 4, 1, 4 * 4, 4)
    for gradient in torch.autograd.grad(out.square().sum(), (x, w)):
        assert gradient.is_contiguous()


def test_other_numbers_of_axes_keep_their_layout() -> None:
    with EfficientDoubleBackward():
        assert F.conv1d(normal(2, 3, 5), normal(4, 3, 3)).is_contiguous()
        assert F.conv3d(normal(2, 3, 5, 5, 5), normal(4, 3, 3, 3, 3)).is_contiguous()
        assert F.conv2d(normal(3, 5, 5), normal(4, 3, 3, 3)).shape == (4, 3, 3)  # no batch


@pytest.mark.parametrize(
    "flat",
    [
        lambda y: y.view(len(y), -1),
        lambda y: y.flatten(2).view(len(y), -1),
        lambda y: y.view_as(torch.empty(len(y), y[0].numel())),
        lambda y: torch.Tensor.view(y, size=(len(y), -1)),
    ],
)
def test_feature_maps_can_be_viewed_as_if_they_were_contiguous(flat: Op) -> None:
    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = F.conv2d(x, w, b).relu()
        return flat(y) * torch.arange(1.0, y[0].numel() + 1, dtype=F64)

    assert_same(op, [normal(2, 3, 5, 6), normal(4, 3, 3, 3, seed=1), normal(4, seed=2)])
    with EfficientDoubleBackward(), pytest.raises(RuntimeError, match=r"shape '.7.' is invalid"):
        normal(2, 3, 5, 6).view(7)


@pytest.mark.parametrize(
    "relu",
    [
        F.relu,
        torch.relu,
        Tensor.relu,
        nn.ReLU(inplace=True),
        torch.relu_,
        Tensor.relu_,
        lambda y: y[:, :2].relu_() * y[:, 2:].square(),
    ],
)
def test_relu(relu: Op) -> None:
    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = F.conv2d(x, w, b)
        z = relu(y)
        return z.square() + y[:, :2].repeat(1, len(z[0]) // 2, 1, 1)  # y as relu has left it

    assert_same(op, [normal(2, 3, 5, 6), normal(4, 3, 3, 3, seed=1), normal(4, seed=2)])


def test_relu_in_place_is_refused_where_pytorch_refuses_it() -> None:
    for mode in (EfficientDoubleBackward(), nullcontext()):
        with mode, pytest.raises(RuntimeError, match="leaf Variable"):
            normal(2, 3, 4).relu_()


@pytest.mark.parametrize("axes", [1, 3])
def test_convolution_over_other_numbers_of_axes(axes: int) -> None:
    op = {1: F.conv1d, 3: F.conv3d}[axes]
    tensors = [normal(2, 3, *[5] * axes), normal(4, 3, *[3] * axes, seed=1), normal(4, seed=2)]
    assert_same(lambda x, w, b: op(x, w, b, padding=1), tensors)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (9, 3), (4, 3, 6)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, w, b, training=True, eps=1e-3)

    assert_same(op, [normal(*shape), normal(3, seed=1), normal(3, seed=2)])


def test_batch_norm_in_evaluation_mode_and_without_weights() -> None:
    mean, var = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64) * 2
    assert_same(
        lambda x, w, b: F.batch_norm(x, mean, var, w, b), [normal(5, 3), normal(3), normal(3)]
    )
    assert_same(lambda x: F.batch_norm(x, None, None, training=True), [normal(5, 3)])


def test_running_statistics_move_as_ever() -> None:
    x = normal(6, 3, 4, 4)
    moved = []
    for mode in (EfficientDoubleBackward(), nullcontext()):
        layer = nn.BatchNorm2d(3).double()
        with mode:
            layer(x)
        moved.append(layer.state_dict())
    for a, b in zip(moved[0].values(), moved[1].values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "lies_last"),
    [
        ("resnet18_32x32", (False, False)),
        ("wrn16_2", (False, False)),
        ("wrn16_2", (True, False)),
        ("wrn16_2", (False, True)),
        ("cnn_small", (False, False)),
        ("cnn_small", (True, True)),
    ],
)
def test_a_whole_network_in_training_mode(name: str, lies_last: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    sizes = {"num_classes": 4, "in_channels": 3, "image_size": 8}
    model = build_model(name, **sizes, mean=[0.5] * 3, std=[0.2] * 3).double().train()  # type: ignore[arg-type]
    x = torch.rand(4, 3, 8, 8, dtype=F64, requires_grad=True)
    if lies_last[0]:
        model.to(memory_format=torch.channels_last)
    if lies_last[1]:
        x = channels_last(x)
    found = []
    for cheap in (True, False):
        mode = EfficientDoubleBackward()
        with mode if cheap else nullcontext():
            scores = energy(model(x))
        if cheap:
            slope = mode.input_gradient(scores, x)
        else:
            (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        loss = slope.flatten(1).norm(dim=1).sum() + scores.square().sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        found.append(torch.cat([g.flatten() for g in grads]))
    assert (found[0] - found[1]).norm() <= 1e-9 * found[1].norm()


def test_other_second_derivatives_are_pytorchs_own() -> None:
    """A penalty on weight gradients needs what `input_gradient` leaves out."""

    def weight_penalty(cheap: bool) -> Tensor:
        x, w, g, b = normal(3, 2, 5, 5), normal(4, 2, 3, 3, seed=1), normal(4, seed=2), normal(4)
        with EfficientDoubleBackward() if cheap else nullcontext():
            out = F.batch_norm(F.conv2d(x, w), None, None, g, b, training=True).relu()
        grads = torch.autograd.grad(out.square().sum(), (w, g), create_graph=True)
        total = sum(v.square().sum() for v in grads)
        return torch.cat([v.flatten() for v in torch.autograd.grad(total, (x, w, g, b))])

    torch.testing.assert_close(weight_penalty(True), weight_penalty(False), rtol=1e-9, atol=1e-9)


def test_a_third_derivative_is_refused_rather_than_wrong() -> None:
    x, w = normal(1, 1, 4, 4), normal(1, 1, 3, 3)
    mode = EfficientDoubleBackward()
    with mode:
        score = F.conv2d(x, w).pow(3).sum()
    slope = mode.input_gradient(score, x)
    with pytest.raises(UsageError, match="third derivative"):
        torch.autograd.grad(slope.square().sum(), w, create_graph=True)


@pytest.mark.parametrize("lies_last", [False, True])
def test_mixed_precision_is_as_close_to_full_as_pytorchs_own(lies_last: bool) -> None:
    torch.manual_seed(0)
    model = build_model(
        "wrn16_2", num_classes=4, in_channels=3, image_size=8, mean=[0.5] * 3, std=[0.2] * 3
    ).train()
    x = torch.rand(8, 3, 8, 8, requires_grad=True)
    if lies_last:
        model.to(memory_format=torch.channels_last)

    def weight_gradient(low: bool, cheap: bool) -> Tensor:
        mode = EfficientDoubleBackward()
        with torch.autocast("cpu", torch.bfloat16, enabled=low), mode if cheap else nullcontext():
            scores = energy(model(x).float())
        slope = mode.input_gradient(scores, x)
        assert slope.dtype == torch.float32
        loss = slope.flatten(1).norm(dim=1).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        assert all(g.dtype == torch.float32 for g in grads)
        return torch.cat([g.flatten() for g in grads])

    exact = weight_gradient(low=False, cheap=False)
    ours = float((weight_gradient(low=True, cheap=True) - exact).norm() / exact.norm())
    theirs = float((weight_gradient(low=True, cheap=False) - exact).norm() / exact.norm())
    assert ours < 1.3 * theirs < 1.0
