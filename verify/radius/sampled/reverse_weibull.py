"""Fitting a reverse Weibull distribution, whose location is the largest value that can occur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_SAMPLES = 10  # three parameters from fewer values mean nothing
_CONSTANT = 1e-6  # relative range below which values count as all the same
_NEAREST, _FARTHEST = 1e-7, 10.0  # location minus maximum, in ranges of the values
_SHAPES = (1.0, 1e5)
_POINTS, _ZOOMS, _HALVINGS = 41, 5, 50


@dataclass(frozen=True)
class ReverseWeibull:
    """P(X ≤ v) = exp(−((location − v)/scale)^shape) for v ≤ location, and how well it fits.

    Attributes:
        shape: ≥ 1; at 1 the location is the largest value itself.
        location: the upper end of the support, ≥ every value fitted.
        scale: > 0.
        statistic: Kolmogorov-Smirnov distance of the values from this distribution.
        pvalue: its p-value as if the parameters had been known. They were fitted to the same
            values, so it errs on the high side: a small one speaks against the fit, a large one
            does not prove it.
    """

    shape: float
    location: float
    scale: float
    statistic: float
    pvalue: float


def fit_reverse_weibull(values: Array) -> ReverseWeibull | None:
    """Maximum-likelihood reverse Weibull distribution of `values` (n,), or None if there is none.

    For a given location the distances to it are an ordinary Weibull sample, whose likelihood has a
    single maximum; what is left is a search over the location alone, on a grid that is refined. The
    shape is kept ≥ 1: below, the likelihood is unbounded as the location nears the largest value
    (Smith, "Maximum likelihood estimation in a class of nonregular cases", Biometrika 1985).

    None when the values are fewer than `LEAST_SAMPLES` or (almost) all the same, and when the
    likelihood still grows at a location ten ranges above the largest value, because then the values
    show no upper end.
    """
    top, spread = float(values.max()), float(np.ptp(values))
    if len(values) < LEAST_SAMPLES or spread <= _CONSTANT * abs(top):
        return None
    gaps = (top - values) / spread  # (n,) in [0, 1]
    lowest, highest = np.log(_NEAREST), np.log(_FARTHEST)
    low, high = lowest, highest
    for _ in range(_ZOOMS):
        ahead = np.linspace(low, high, _POINTS)
        shapes, scales, likelihood = _given_location(gaps[None] + np.exp(ahead)[:, None])
        best = int(likelihood.argmax())
        step = (high - low) / (_POINTS - 1)
        low, high = max(ahead[best] - step, lowest), min(ahead[best] + step, highest)
    if ahead[best] == highest:
        return None
    shape, scale = float(shapes[best]), float(scales[best]) * spread
    location = top + float(np.exp(ahead[best])) * spread
    if shape <= _SHAPES[0]:  # the nearer the location the better
        location, scale = top, float(gaps.mean()) * spread
    if not np.isfinite([shape, scale, location]).all():
        return None
    return ReverseWeibull(shape, location, scale, *goodness(values, shape, location, scale))


def goodness(values: Array, shape: float, location: float, scale: float) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance of `values` from a given distribution, and its p-value."""
    from scipy import stats  # takes a second to import, which only CLEVER need wait for

    test = stats.kstest(values, stats.weibull_max(shape, loc=location, scale=scale).cdf)
    return float(test.statistic), float(test.pvalue)


def _given_location(distances: Array) -> tuple[Array, Array, Array]:
    """Shape, scale and mean log-likelihood (G,) of the best Weibull fit of `distances` (G, n).

    The shape c is the root of Σ y^c log y / Σ y^c − 1/c − mean(log y), which grows with c.
    """
    longest = distances.max(1, keepdims=True)
    logs = np.log(distances / longest)  # (G, n), ≤ 0, so that no power overflows
    mean = logs.mean(1)
    low, high = (np.full(len(logs), np.log(end)) for end in _SHAPES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        powers = np.exp(np.exp(middle)[:, None] * logs)
        slope = (powers * logs).sum(1) / powers.sum(1) - np.exp(-middle) - mean
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    shape = np.exp(low)
    log_scale = np.log(np.exp(shape[:, None] * logs).mean(1)) / shape
    likelihood = np.log(shape) - shape * log_scale + (shape - 1) * mean - 1 - np.log(longest[:, 0])
    return shape, np.exp(log_scale) * longest[:, 0], likelihood
