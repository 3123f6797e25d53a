"""Proven operator norms against singular values of the layer written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from layers import CONVOLUTIONS, LAYERS, conv, dense, linear, weight
from torch import Tensor

from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.lipschitz import norm_from_below, operator_norm, row_norms
from greg_cert.verify.operators import band, gram, operator_norms, symbol
from greg_cert.verify.operators.layers import as_convolution, distinct_groups

ROUNDING = 1e-13  # of the singular values that bounds are compared with


def truth(op: Conv | Linear) -> float:
    return float(torch.linalg.matrix_norm(dense(op), ord=2))


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are found again."""
    monkeypatch.setattr(operator_norms, "_found", {})


def check_norm_of(name: str) -> None:
    op, size = LAYERS[name], truth(LAYERS[name])
    found = operator_norm(op)
    assert found >= size * (1 - ROUNDING), f"the norm of {name} is below the truth"
    assert found <= size * 1.003
    assert operator_norm(op, math.inf) >= float(dense(op).abs().sum(1).amax()) * (1 - ROUNDING)
    assert operator_norm(op, math.inf) <= float(dense(op).abs().sum(1).amax()) * (1 + 1e-12)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_the_norm_of_a_small_layer_is_exact_and_never_below(name: str) -> None:
    check_norm_of(name)
    assert norm_from_below(LAYERS[name]) == pytest.approx(truth(LAYERS[name]), rel=1e-3)
    assert norm_from_below(LAYERS[name]) <= truth(LAYERS[name]) * (1 + 1e-12)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_symbol_is_never_below(name: str) -> None:
    op = LAYERS[name]
    assert isinstance(op, Conv)
    assert symbol.symbol_norm(op) >= truth(op) * (1 - ROUNDING)
    taps = symbol.polyphase(distinct_groups(op))
    for fineness in (3, 5):  # coarse grids, whose factor is large
        grid = tuple(max(1, fineness * (k - 1)) for k in taps.shape[3:])
        assert symbol.grid_norm(taps, grid) >= truth(op) * (1 - ROUNDING)  # type: ignore[arg-type]


WIDE = {
    "plain": conv((2, 2, 3, 3), (2, 24, 24), padding=(1, 1)),
    "stride": conv((2, 2, 3, 3), (2, 30, 30), padding=(1, 1), stride=(2, 2)),
    "dilated": conv((2, 1, 3, 3), (1, 36, 36), padding=(2, 2), dilation=(2, 2)),
    "dilated, stride": conv((2, 1, 3, 2), (1, 40, 40), dilation=(2, 3), stride=(2, 2)),
    "groups": conv((4, 2, 3, 2), (4, 24, 24), groups=2),
    "depthwise": conv((3, 1, 5, 3), (3, 30, 30), groups=3, padding=(2, 1), stride=(1, 2)),
}


@pytest.mark.parametrize("name", sorted(WIDE))
def test_the_symbol_is_near_the_truth_on_large_maps(name: str) -> None:
    size = norm_from_below(WIDE[name])
    assert size * (1 - 1e-9) <= symbol.symbol_norm(WIDE[name]) <= 1.06 * size


def test_large_layers_go_by_the_symbol(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    op = WIDE["plain"]
    monkeypatch.setattr(operator_norms, "LARGEST_GRAM", 100)
    monkeypatch.setattr(band, "LARGEST_BAND", 100)
    found = operator_norm(op)
    assert found == pytest.approx(symbol.symbol_norm(op), rel=1e-12)
    assert found > 1.001 * gram.gram_norm(op)
    monkeypatch.setattr(symbol, "_BUDGET", 0.0)  # nothing is affordable: absolute sums remain
    monkeypatch.setattr(operator_norms, "_found", {})
    assert found < operator_norm(op) < math.inf
    monkeypatch.setattr(symbol, "LARGEST_GRAM", 1)
    assert symbol.symbol_norm(op) == math.inf


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("points_a_degree", [3, 4, 6, 16])
def test_the_factor_of_a_grid(degree: int, points_a_degree: int) -> None:
    grid = points_a_degree * degree
    generator = torch.Generator().manual_seed(degree)
    k = torch.arange(degree + 1, dtype=torch.float64)
    fine = torch.linspace(0, 2 * math.pi, 400 * grid + 1, dtype=torch.float64)[:, None]
    coarse = 2 * math.pi / grid * torch.arange(grid, dtype=torch.float64)[:, None]
    factor = symbol.grid_factor((degree,), (grid,)) ** 2  # of ‖Ŵ‖², which is the polynomial
    worst = 0.0
    for draw in range(40):
        a, b = torch.randn(2, degree + 1, generator=generator, dtype=torch.float64)
        if draw == 0:  # cos(d(ω − π/N)), whose peaks lie between grid points: attained
            shift = math.pi * degree / grid
            a, b = torch.zeros_like(a), torch.zeros_like(b)
            a[-1], b[-1] = math.cos(shift), math.sin(shift)

        def value(w: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            return ((w * k).cos() @ a + (w * k).sin() @ b).abs().amax()

        assert value(fine) <= factor * value(coarse) * (1 + 1e-12)
        worst = max(worst, float(value(fine) / value(coarse)))
    assert worst >= 0.999 * factor or points_a_degree % 2  # a peak of −1 is on the grid then


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e-150, 1e150])
@pytest.mark.parametrize("name", ["stride", "groups", "1x1", "linear, wide"])
def test_scales(name: str, scale: float) -> None:
    op = LAYERS[name]
    scaled = replace(op, weight=op.weight * scale)
    assert operator_norm(scaled) == pytest.approx(scale * operator_norm(op), rel=1e-9)
    assert operator_norm(scaled) >= scale * truth(op) * (1 - ROUNDING)


def test_weights_that_are_zero_unread_or_not_finite() -> None:
    op = conv((3, 2, 3, 3), (2, 1, 1), padding=(1, 1))
    op.weight.mul_(1e9)
    op.weight[..., 1, 1] = 1e-12 * weight(3, 2)  # all that one pixel under zeros meets
    small = float(torch.linalg.matrix_norm(op.weight[..., 1, 1], ord=2))
    assert operator_norm(op) == pytest.approx(small, rel=1e-5)
    assert operator_norm(op) >= small * (1 - ROUNDING)
    op.weight[..., 1, 1] = 0.0
    assert operator_norm(op) == 0.0
    assert operator_norm(Linear(torch.zeros(3, 4), torch.zeros(3))) == 0.0
    for bad in (math.nan, math.inf):
        values = torch.ones(3, 4)
        values[1, 2] = bad
        for norm in (2.0, math.inf):
            assert operator_norm(Linear(values, torch.zeros(3)), norm) == math.inf


def test_equal_singular_values_and_rank_one() -> None:
    eye = Linear(torch.eye(40).double(), torch.zeros(40).double())
    assert 1.0 <= operator_norm(eye) <= 1 + 1e-5
    row = weight(1, 60)
    one = Linear(weight(50, 1) @ row, torch.zeros(50).double())
    assert operator_norm(one) == pytest.approx(truth(one), rel=1e-5)


def test_a_space_that_hides_the_largest_vector_is_not_believed() -> None:
    # Many eigenvalues close below the largest: few iterations cannot find it, so proofs fail first.
    spread = torch.diag(torch.linspace(0.5, 1.0, 700, dtype=torch.float64))
    spread[-1, -1] = 1.2
    rotation = torch.linalg.qr(weight(700, 700))[0]
    found = gram.largest_eigenvalue((rotation @ spread @ rotation.T).unsqueeze(0).clone(), 0.0)
    assert 1.2 * (1 - ROUNDING) <= found <= 1.2 * 1.005


def test_norms_are_kept_by_weights_and_settings(
    monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    calls = []
    before = operator_norms._operator_norm
    monkeypatch.setattr(
        operator_norms, "_operator_norm", lambda *given: calls.append(given) or before(*given)
    )
    op = conv((3, 2, 3, 3), (2, 6, 6), padding=(1, 1))
    first = operator_norm(op)
    assert (
        operator_norm(Conv(op.weight.clone(), op.bias + 1, op.input_shape, (1, 1), (1, 1))) == first
    )
    assert len(calls) == 1
    others = [
        {"padding": (0, 0)}, {"stride": (2, 2)}, {"dilation": (2, 2)}, {"input_shape": (2, 5, 7)},
        {"weight": op.weight * 1.001}, {"weight": op.weight.transpose(2, 3).contiguous()},
    ]  # fmt: skip
    for changes in others:
        operator_norm(replace(op, **changes))
    operator_norm(op, math.inf)
    assert len(calls) == 2 + len(others)
    monkeypatch.setattr(operator_norms, "_KEPT", 3)
    operator_norm(replace(op, weight=2 * op.weight))
    assert len(operator_norms._found) == 3


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_row_norms_are_those_of_the_masked_matrix(name: str) -> None:
    op, matrix = LAYERS[name], dense(LAYERS[name])
    shape = as_convolution(op).input_shape if isinstance(op, Conv) else (matrix.shape[1],)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(4, *shape, generator=generator, dtype=torch.float64).round(decimals=1)
    mask[0], mask[1] = 1.0, 0.0
    expected = (matrix * mask.flatten(1).unsqueeze(1)).norm(dim=2)
    found = row_norms(op, mask).flatten(1)
    assert bool((found >= expected * (1 - ROUNDING)).all())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-300)


def test_float32_layers_have_the_norm_of_their_weights() -> None:
    op = linear(6, 9)
    single = Linear(op.weight.float(), op.bias.float())
    assert operator_norm(single) >= float(torch.linalg.matrix_norm(single.weight.double(), ord=2))


# --- The checks above can fail ------------------------------------------------------------------


def _estimate_alone(grams: Tensor, error: float) -> float:
    """Power iteration in the place of the proof."""
    count, size = grams.shape[:2]
    return float(
        gram.largest_eigenvalue_estimate(
            lambda v: (grams @ v.unsqueeze(2)).squeeze(2), size, grams, batch=count, steps=3
        ).amax()
    )


def _iteration_alone(op: Conv) -> float:
    """Two steps of an iteration in the place of the proof."""
    step = dense(op).T @ dense(op)
    v = torch.ones(len(step), dtype=torch.float64)
    for _ in range(2):
        v = step @ v
        v = v / v.norm()
    return float((v @ step @ v).sqrt())


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong"),
    [
        (gram, "largest_eigenvalue", _estimate_alone),
        (operator_norms, "band_norm", _iteration_alone),
        (symbol, "largest_eigenvalue", _estimate_alone),
        (symbol, "grid_factor", lambda degrees, grid: 1.0),
        (symbol, "_phases", lambda weight, *_: weight),
        (operator_norms, "_reads_apart", lambda op: True),
    ],
)  # fmt: skip
def test_a_wrong_norm_is_found(
    owner: object, attribute: str, wrong: object, monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    def check_all() -> None:
        for name in sorted(LAYERS):
            check_norm_of(name)
        for name in CONVOLUTIONS:
            test_the_symbol_is_never_below(name)
        for degree in (1, 2, 5):
            test_the_factor_of_a_grid(degree, 4)

    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        check_all()
