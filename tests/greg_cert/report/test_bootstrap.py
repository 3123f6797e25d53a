import numpy as np
import pytest
from scipy import stats

from greg_cert.report.tables import bootstrap
from greg_cert.report.tables.bootstrap import resampled_medians


def by_scipy(series, resamples, seed):
    """Every resample sorted: the distribution that scipy's bootstrap makes with this seed."""
    found = stats.bootstrap(
        tuple(series),
        lambda *drawn, axis=-1: np.stack([np.median(x, axis=axis) for x in drawn]),
        n_resamples=resamples,
        batch=7,
        vectorized=True,
        paired=True,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return found.bootstrap_distribution.T


@pytest.mark.parametrize("n", [2, 3, 8, 51, 400, 401])
def test_medians_are_those_of_sorted_resamples(n):
    rng = np.random.default_rng(n)
    one = rng.gamma(3, 1, n).round(1)  # with ties
    other = np.where(rng.random(n) < 0.4, 0.0, one + rng.normal(size=n))
    series = np.stack([one, other, one - other, np.full(n, 2.5)])
    np.testing.assert_array_equal(resampled_medians(series, 99, 3), by_scipy(series, 99, 3))


def test_medians_outside_the_window_are_found_too(monkeypatch):
    monkeypatch.setattr(bootstrap, "_WIDE", 0.5)  # which every other resample leaves
    series = np.random.default_rng(0).normal(size=(2, 300))
    np.testing.assert_array_equal(resampled_medians(series, 99, 1), by_scipy(series, 99, 1))


def test_blocks_of_any_size_draw_the_same(monkeypatch):
    series = np.random.default_rng(0).normal(size=(2, 301))
    whole = resampled_medians(series, 20, 1)
    monkeypatch.setattr(bootstrap, "_ELEMENTS", 700)
    np.testing.assert_array_equal(resampled_medians(series, 20, 1), whole)
