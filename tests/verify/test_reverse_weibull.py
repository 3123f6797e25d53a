"""The reverse Weibull fit, against scipy's distribution, its own fit, and data that has none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from greg_cert.verify.radius.sampled.reverse_weibull import Array, fit_reverse_weibull, goodness


def draw(shape: float, n: int, seed: int, location: float = 3.0, scale: float = 1.5) -> Array:
    generator = np.random.default_rng(seed)
    values: Array = stats.weibull_max.rvs(
        shape, loc=location, scale=scale, size=n, random_state=generator
    )
    return values


def log_likelihood(values: Array, shape: float, location: float, scale: float) -> float:
    return float(stats.weibull_max.logpdf(values, shape, loc=location, scale=scale).sum())


@pytest.mark.parametrize("shape", [1.5, 2.5, 4.0])
def test_known_parameters_are_recovered(shape: float) -> None:
    fit = fit_reverse_weibull(draw(shape, 20_000, seed=1))
    assert fit is not None
    assert fit.location == pytest.approx(3.0, abs=0.03)
    assert fit.shape == pytest.approx(shape, rel=0.05)
    assert fit.scale == pytest.approx(1.5, rel=0.03)


@pytest.mark.parametrize("shape", [2.0, 5.0])
def test_no_start_of_scipys_optimiser_finds_a_likelier_distribution(shape: float) -> None:
    for seed in range(4):
        values = draw(shape, 60, seed)
        fit = fit_reverse_weibull(values)
        assert fit is not None
        assert fit.location >= values.max()
        ours = log_likelihood(values, fit.shape, fit.location, fit.scale)
        for start in (1.5, 4.0, 10.0):
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                other = stats.weibull_max.fit(
                    values, start, loc=values.max() + np.ptp(values) / 10, scale=np.ptp(values)
                )
            # Shapes below 1 have no largest likelihood; the fit stays away from them.
            assert other[0] < 1 or log_likelihood(values, *other) <= ours + 1e-6


def test_the_fit_moves_and_scales_with_the_values() -> None:
    values = draw(2.5, 80, seed=5)
    one, two = fit_reverse_weibull(values), fit_reverse_weibull(1e-6 * values + 0.25e-6)
    assert one is not None
    assert two is not None
    assert two.shape == pytest.approx(one.shape, rel=1e-6)
    assert two.location == pytest.approx(1e-6 * one.location + 0.25e-6, rel=1e-6)
    assert two.pvalue == pytest.approx(one.pvalue, rel=1e-4)


def test_the_fitted_location_never_lies_below_a_value() -> None:
    for seed in range(40):
        values = draw(1.0 + seed / 8, 15, seed)
        fit = fit_reverse_weibull(values)
        assert fit is None or fit.location >= values.max()


@pytest.mark.parametrize(
    "values",
    [
        np.full(50, 2.0),
        np.zeros(50),
        2.0 + 1e-9 * np.arange(50),
        np.linspace(0.0, 1.0, 9),  # too few
        stats.pareto.ppf((np.arange(60) + 0.5) / 60, 1.5),  # no upper end at all
    ],
    ids=["constant", "zero", "almost-constant", "few", "heavy-tail"],
)
def test_values_without_a_usable_fit(values: Array) -> None:
    assert fit_reverse_weibull(values) is None


def test_at_shape_one_the_location_is_the_largest_value() -> None:
    values = 1.0 - stats.expon.ppf((np.arange(60) + 0.5) / 60)
    fit = fit_reverse_weibull(values)
    assert fit is not None
    assert (fit.shape, fit.location) == (1.0, values.max())
    assert fit.scale == pytest.approx((values.max() - values).mean())
    assert fit.pvalue > 0.5


def test_the_pvalue_is_uniform_when_the_parameters_are_the_true_ones() -> None:
    pvalues = [goodness(draw(2.0, 50, s), 2.0, 3.0, 1.5)[1] for s in range(300)]
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01


def test_with_fitted_parameters_the_pvalue_errs_on_the_high_side() -> None:
    fits = [fit_reverse_weibull(draw(2.5, 50, s)) for s in range(200)]
    pvalues = np.array([f.pvalue for f in fits if f is not None])
    assert len(pvalues) > 180
    for level in (0.05, 0.2, 0.5):
        assert (pvalues <= level).mean() <= level


def test_two_clusters_of_values_are_no_reverse_weibull_sample() -> None:
    generator = np.random.default_rng(2)
    for below in (5, 25, 45):
        sizes = {1.0: below, 2.0: 50 - below}
        clusters = np.concatenate([generator.normal(m, 0.02, n) for m, n in sizes.items()])
        fit = fit_reverse_weibull(clusters)
        assert fit is None or fit.pvalue < 1e-3
        assert fit is not None or below == 45  # few values far above: a heavy tail
