"""The CLEVER estimate: exact for linear scores, near where the truth is known, no proof."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from problems import affine_one_logit, build, one_relu, points
from scipy import stats
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.verify.lipschitz import lipschitz_bound
from greg_cert.verify.radius.sampled import clever
from greg_cert.verify.radius.sampled.clever import (
    CleverEstimate,
    CleverOptions,
    clever_estimate,
    clever_radius_estimate,
)
from greg_cert.verify.scorer import ScoreFunction, score_function

NORMS = (2.0, math.inf)
FAST = CleverOptions(batches=20, batch_size=20)


def dual(w: Tensor, norm: float) -> float:
    return float(w.norm() if norm == 2.0 else w.abs().sum())


def weight(model: nn.Module) -> Tensor:
    """The row of the first layer."""
    return next(model.parameters()).detach()[0]


def sines(x: Tensor) -> Tensor:
    """Steepest at 0, where the gradient is a vector of ones; near it the slope falls smoothly."""
    return x.flatten(1).sin().sum(1)


def recorder(seen: list[Tensor]) -> ScoreFunction:
    def score(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return sines(x)

    return score


def same(one: CleverEstimate, other: CleverEstimate, rows: slice = slice(None)) -> None:
    for f in fields(CleverEstimate):
        torch.testing.assert_close(
            getattr(one, f.name)[rows], getattr(other, f.name), rtol=1e-6, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("norm", NORMS)
def test_an_affine_score_has_its_own_slope(norm: float) -> None:
    case = affine_one_logit()
    estimate = clever_estimate(
        score_function(case.model), case.inputs, 0.5, norm=norm, options=FAST
    )
    slope = torch.full_like(estimate.shape, dual(weight(case.model), norm))
    torch.testing.assert_close(estimate.lipschitz_estimate, slope)
    assert torch.equal(estimate.sampled_maximum, estimate.lipschitz_estimate)
    assert not estimate.fitted.any()
    for name in ("fit_pvalue", "fit_statistic", "shape", "scale"):
        assert getattr(estimate, name).isnan().all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_smooth_peak_is_extrapolated(norm: float) -> None:
    # Slopes fall with the square of the distance from the peak: a reverse Weibull of shape d/2.
    x = torch.zeros(6, 5, dtype=torch.float64)
    estimate = clever_estimate(sines, x, 1.0, norm=norm, options=CleverOptions(batches=200))
    truth = dual(torch.ones(5), norm)
    assert bool((estimate.sampled_maximum < truth).all())
    assert bool(estimate.fitted.all())
    assert bool((estimate.fit_pvalue > 0.1).all())
    off = (estimate.lipschitz_estimate - truth).abs()
    assert float(off.median()) < 0.5 * float((estimate.sampled_maximum - truth).abs().median())
    assert float(estimate.shape.median()) == pytest.approx(2.5, rel=0.25)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["conv", "residual"])
def test_the_sampled_maximum_is_below_the_proven_bound(name: str, norm: float) -> None:
    model, shape = build(name)
    x = points(shape, 3, seed=31)
    estimate = clever_estimate(score_function(model), x, 0.3, norm=norm, options=FAST)
    bound = lipschitz_bound(model, x, 0.3, norm=norm)
    assert bool((estimate.sampled_maximum <= bound * (1 + 1e-9)).all())
    assert bool((estimate.lipschitz_estimate >= estimate.sampled_maximum).all())


@pytest.mark.parametrize("norm", NORMS)
def test_a_kink_matters_only_inside_the_ball(norm: float) -> None:
    case = one_relu()
    w = weight(case.model)
    to_kink = (1.0 - case.inputs @ w) / dual(w, norm)
    flat = case.inputs[to_kink > 0]
    distance = to_kink[to_kink > 0]
    assert len(flat) >= 2
    score = score_function(case.model)
    near = clever_estimate(score, flat, 0.99 * distance, norm=norm, options=FAST)
    assert bool((near.lipschitz_estimate == 0).all())
    far = clever_estimate(score, flat, 3.0 * distance, norm=norm, options=FAST)
    steep = torch.full_like(distance, 1.5 * dual(w, norm))
    torch.testing.assert_close(far.sampled_maximum, steep)
    # The ball reaches over the kink by so little that no point falls there: why this is no proof.
    missed = clever_estimate(score, flat, 1.001 * distance, norm=norm, options=FAST)
    assert bool((missed.lipschitz_estimate == 0).all())


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the comparison of rows, so that a recorder sees sampled points alone."""
    monkeypatch.setattr(clever, "check_rowwise", lambda *_: None)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.usefixtures("unchecked")
def test_points_are_uniform_in_the_ball(norm: float) -> None:
    seen: list[Tensor] = []
    x = points((3,), 1, seed=2)
    options = CleverOptions(batches=10, batch_size=200)
    clever_estimate(recorder(seen), x, 0.7, norm=norm, options=options)
    delta = torch.cat(seen) - x
    length = torch.linalg.vector_norm(delta, ord=norm, dim=1) / 0.7
    assert float(length.max()) <= 1 + 1e-12
    assert stats.kstest((length**3).numpy(), "uniform").pvalue > 0.01  # the share of the volume
    direction = delta / torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    coordinate = (direction if norm == 2.0 else delta / 0.7)[:, 0]  # uniform on [-1, 1], both
    assert stats.kstest(coordinate.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("chunk", [1, 7, 400, 10_000])
@pytest.mark.usefixtures("unchecked")
def test_chunks_do_not_change_the_points(chunk: int) -> None:
    x = points((4,), 2, seed=3)
    one: list[Tensor] = []
    other: list[Tensor] = []
    options = CleverOptions(batches=10, batch_size=20)
    first = clever_estimate(recorder(one), x, 0.5, options=options)
    second = clever_estimate(recorder(other), x, 0.5, options=replace(options, chunk=chunk))
    assert torch.equal(torch.cat(one), torch.cat(other))
    assert max(len(part) for part in other) == min(chunk, 400)
    same(first, second)


def test_a_sample_does_not_depend_on_its_companions() -> None:
    x = points((4,), 3, seed=4)
    radius = torch.tensor([0.2, 0.5, 0.9])
    names = torch.tensor([11, 5, 8])
    together = clever_estimate(sines, x, radius, options=FAST, indices=names)
    for i in range(3):
        alone = clever_estimate(
            sines, x[i : i + 1], float(radius[i]), options=FAST, indices=names[i : i + 1]
        )
        same(together, alone, slice(i, i + 1))
    renamed = clever_estimate(sines, x, radius, options=FAST)
    reseeded = clever_estimate(sines, x, radius, options=replace(FAST, seed=1))
    for other in (renamed, reseeded):
        assert bool((other.sampled_maximum != together.sampled_maximum).all())


def test_more_batches_never_lower_the_sampled_maximum() -> None:
    x = points((4,), 4, seed=5)
    few, many = (
        clever_estimate(sines, x, 0.5, options=replace(FAST, batches=n)).sampled_maximum
        for n in (10, 40)
    )
    assert bool((many >= few).all())
    assert bool((many > few).any())


def test_the_radius_estimate() -> None:
    nan = torch.full((4,), math.nan, dtype=torch.float64)
    slope = torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    estimate = CleverEstimate(slope, slope, slope > 9, nan, nan, nan, nan)
    gap = torch.tensor([1.0, 8.0, 3.0, 0.0], dtype=torch.float64)
    assert clever_radius_estimate(gap, estimate, 0.9).tolist() == [0.5, 0.9, 0.9, 0.0]
    assert clever_radius_estimate(-gap, estimate, 0.9).tolist() == [0.0] * 4
    each = torch.tensor([0.25, 2, 4, 4])
    assert clever_radius_estimate(gap, estimate, each).tolist() == [0.25, 2.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("batches", 9), ("batches", 20.5), ("batch_size", 0), ("seed", -1), ("chunk", True)],
)
def test_bad_options_are_named(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"expected an integer {field} >= \d+, but got {value}"):
        CleverOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_bad_radii_are_named(radius: float) -> None:
    x = points((4,), 2)
    with pytest.raises(UsageError, match="expected radius > 0 and finite, but got"):
        clever_estimate(sines, x, torch.tensor([0.5, radius]), options=FAST)
    with pytest.raises(UsageError, match="expected radius > 0 and finite, but got"):
        clever_estimate(sines, x, radius, options=FAST)


def test_other_bad_arguments_are_named() -> None:
    x = points((4,), 2)
    with pytest.raises(UsageError, match=r"expected radius to be a number or \(2,\)"):
        clever_estimate(sines, x, torch.ones(3), options=FAST)
    with pytest.raises(UsageError, match="expected norm 2 or inf"):
        clever_estimate(sines, x, 0.5, norm=1.0, options=FAST)
    for wrong in (torch.ones(3, dtype=torch.long), torch.ones(2)):
        with pytest.raises(UsageError, match=r"expected indices \(2,\) of an integer type"):
            clever_estimate(sines, x, 0.5, options=FAST, indices=wrong)
    with pytest.raises(UsageError, match="expected indices >= 0, but got -3"):
        clever_estimate(sines, x, 0.5, options=FAST, indices=torch.tensor([1, -3]))
    with pytest.raises(UsageError, match="finite gradients"):
        clever_estimate(lambda y: y.sum(1) * math.nan, x, 0.5, options=FAST)
