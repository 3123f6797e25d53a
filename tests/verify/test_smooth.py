"""Smooth activations: each table entry, and lines, ranges and slopes that hold everywhere."""

from __future__ import annotations

import itertools
import math

import mpmath  # sympy's, which torch needs
import pytest
import torch
from smooth_networks import KINDS, LAYERS, dense, hard_intervals
from torch import Tensor

from greg_cert.verify.bounds import relax_smooth as relaxing
from greg_cert.verify.bounds.relax_smooth import relax_smooth
from greg_cert.verify.graph.smooth import SHAPES, crosses_jump, slope_range, value_range


def exact(kind: str, z: float) -> mpmath.mpf:
    """The function by its definition, in the precision that is set."""
    x = mpmath.mpf(z)
    cube = mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)
    forms = {
        "sigmoid": lambda: 1 / (1 + mpmath.exp(-x)),
        "tanh": lambda: mpmath.tanh(x),
        "softplus": lambda: mpmath.log1p(mpmath.exp(x)),
        "silu": lambda: x / (1 + mpmath.exp(-x)),
        "gelu": lambda: x * mpmath.ncdf(x),
        "gelu-tanh": lambda: x / 2 * (1 + mpmath.tanh(cube)),
        "elu": lambda: x if x > 0 else mpmath.expm1(x),
    }
    return forms[kind]()


def test_every_kind_has_its_layer() -> None:
    assert set(SHAPES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives_by_definition(kind: str) -> None:
    shape = SHAPES[kind]
    places = [*torch.linspace(-12.03, 12.01, 41).tolist(), -30.0, 30.0, 1e-9, -1e-9, 700.0]
    z = torch.tensor(places, dtype=torch.float64)
    with mpmath.workdps(400):
        value = torch.tensor([float(exact(kind, x)) for x in z.tolist()], dtype=torch.float64)
        slope = torch.tensor(
            [float(mpmath.diff(lambda x: exact(kind, x), x)) for x in z.tolist()],
            dtype=torch.float64,
        )
    assert torch.allclose(shape.value(z), value, rtol=4e-15, atol=1e-17)
    assert torch.allclose(shape.value(z), value, rtol=1e-12, atol=0)
    assert torch.allclose(shape.slope(z), slope, rtol=1e-14, atol=4e-16)
    jump = 2.1e-9 * (z > 20) if kind == "softplus" else torch.zeros_like(z)
    for function in (shape.torch_function, LAYERS[kind]):
        assert bool(((function(z) - value).abs() <= 4e-15 * (1 + value.abs()) + jump).all())
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(shape.torch_function(leaf).sum(), leaf)
    assert bool(((gradient - slope).abs() <= 1e-14 + jump).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_bends_and_turns_where_the_table_says(kind: str) -> None:
    shape = SHAPES[kind]
    with mpmath.workdps(40):

        def curvature(z: float) -> mpmath.mpf:
            return mpmath.diff(lambda x: exact(kind, x), z, 2)

        edges = [-9.0, *shape.bends, 9.0]
        for k, (a, b) in enumerate(itertools.pairwise(edges)):
            convex = shape.convex_first == (k % 2 == 0)
            for z in (a + (b - a) * t for t in (1e-9, 0.03, 0.3, 0.5, 0.7, 0.97, 1 - 1e-9)):
                if kind == "elu" and z >= 0:
                    continue  # straight
                assert (curvature(z) > 0) == convex, z
        if shape.lowest is not None:
            slope = mpmath.diff(lambda x: exact(kind, x), shape.lowest)
            assert abs(slope) < 1e-15


def check_lines(kind: str, low: Tensor, high: Tensor) -> None:
    """Raise AssertionError where a line crosses the function."""
    slope_low, intercept_low, slope_high, intercept_high = relaxing.relax_smooth(kind, low, high)
    z = dense(low, high)
    truth = SHAPES[kind].torch_function(z)
    # The rounding of the line itself, as it is evaluated here.
    noise = 4e-16 * (1e-300 + z.abs() * torch.maximum(slope_low.abs(), slope_high.abs()))
    assert bool((slope_low * z + intercept_low <= truth + noise).all()), "the lower line"
    assert bool((slope_high * z + intercept_high >= truth - noise).all()), "the upper line"


@pytest.mark.parametrize("kind", KINDS)
def test_lines_enclose_the_function(kind: str) -> None:
    check_lines(kind, *hard_intervals())


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_enclose_values_and_slopes(kind: str) -> None:
    low, high = hard_intervals()
    z = dense(low, high)
    shape = SHAPES[kind]
    below, above = value_range(kind, low, high)
    values = shape.torch_function(z)
    assert bool((values >= below).all())
    assert bool((values <= above).all())
    smallest, largest = slope_range(kind, low, high)
    leaf = z.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(shape.torch_function(leaf).sum(), leaf)
    assert bool((slopes >= smallest).all())
    assert bool((slopes <= largest).all())
    # And they are no wider than need be, where the grid is fine enough to tell.
    fair = (low >= -45) & (high <= 45)
    jump = 2.1e-9 if kind == "softplus" else 0.0
    for lower, upper, seen in ((below, above, values), (smallest, largest, slopes)):
        assert bool((seen.amin(0) - lower <= 1e-2 + jump)[fair].all())
        assert bool((upper - seen.amax(0) <= 1e-2 + jump)[fair].all())


@pytest.mark.parametrize("kind", KINDS)
def test_lines_are_tight(kind: str) -> None:
    # By brute force: the lowest line above dense samples has the height of their concave hull.
    generator = torch.Generator().manual_seed(9)
    centre = 2.5 * torch.randn(40, generator=generator, dtype=torch.float64)
    width = 6 * torch.rand(40, generator=generator, dtype=torch.float64) ** 2
    low, high = centre - width / 2, centre + width / 2
    slope_low, intercept_low, slope_high, intercept_high = relax_smooth(kind, low, high)
    share = torch.linspace(0, 1, 201, dtype=torch.float64).unsqueeze(1)
    values = SHAPES[kind].torch_function(low + share * (high - low))
    left, right = values[:101].unsqueeze(1), values[100:].unsqueeze(0)
    s, t = share[:101].unsqueeze(1), share[100:].unsqueeze(0)
    mix = ((0.5 - s) / (t - s).clamp_min(1e-9)).clamp(0, 1)
    chords = left + mix * (right - left)
    hull_above, hull_below = chords.amax((0, 1)), chords.amin((0, 1))
    loss = 1e-4 + 0.02 * (values.amax(0) - values.amin(0))
    assert bool((slope_high * centre + intercept_high - hull_above <= loss).all())
    assert bool((hull_below - slope_low * centre - intercept_low <= loss).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_has_its_tangent(kind: str) -> None:
    z = torch.linspace(-6, 6, 31, dtype=torch.float64)
    slope_low, intercept_low, slope_high, intercept_high = relax_smooth(kind, z, z)
    value = SHAPES[kind].value(z)
    for slope, intercept in ((slope_low, intercept_low), (slope_high, intercept_high)):
        assert torch.allclose(slope, SHAPES[kind].slope(z), rtol=0, atol=1e-13)
        assert torch.allclose(slope * z + intercept, value, rtol=0, atol=4e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_ends_that_are_not_finite_give_no_line(kind: str) -> None:
    nan, inf = math.nan, math.inf
    low = torch.tensor([nan, 0.0, -inf, 0.0, -inf, nan, -1.0], dtype=torch.float64)
    high = torch.tensor([0.0, nan, 0.0, inf, inf, nan, 1.0], dtype=torch.float64)
    for part in relax_smooth(kind, low, high):
        assert part[:6].isnan().all()
        assert part[6].isfinite()
    for part in (*value_range(kind, low, high), *slope_range(kind, low, high)):
        assert part[[0, 1, 5]].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_ends_that_rounding_reversed_are_put_in_order(kind: str) -> None:
    low = torch.tensor([0.3, -0.7], dtype=torch.float64)
    high = low - 1e-15
    for a, b in zip(relax_smooth(kind, low, high), relax_smooth(kind, high, low), strict=True):
        assert torch.equal(a, b)


def test_the_jump_of_softplus_is_inside() -> None:
    # Just above 20 torch's softplus falls to z itself.
    low, high = torch.tensor([19.9, 19.0, 20.1]).double(), torch.tensor([20.1, 19.9, 30.0]).double()
    assert crosses_jump("softplus", low, high).tolist() == [True, False, False]
    assert not crosses_jump("silu", low, high).any()
    check_lines("softplus", low, high)
    z = torch.tensor(20.0000001, dtype=torch.float64)
    assert SHAPES["softplus"].torch_function(z) < SHAPES["softplus"].value(z) - 2e-9


# --- The checks above can fail ------------------------------------------------------------------

relax_before = relaxing.relax_smooth
above_before = relaxing._intercept_above


def _ends_only(f: object, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    value = f.value  # type: ignore[attr-defined]
    return torch.maximum(value(low) - slope * low, value(high) - slope * high)


def _lower_by(share: float) -> object:
    def wrong(f: object, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return above_before(f, slope, low, high) - share * (high - low).clamp(max=1.0)  # type: ignore[arg-type]

    return wrong


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [_ends_only, _lower_by(1e-3)], ids=["ends only", "too low"])
def test_a_wrong_intercept_is_found(
    kind: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaxing, "_intercept_above", wrong)
    with pytest.raises(AssertionError, match="line"):
        check_lines(kind, *hard_intervals())
