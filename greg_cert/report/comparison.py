"""Each run against the baseline, on the same samples: a ratio, its interval, and a rank test."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from greg_cert.report.results import Results
from greg_cert.report.wording import one_line, p_value

CONFIDENCE = 0.95
RESAMPLES = 9999
_BATCH_ELEMENTS = 2_000_000  # resampled values held at once, about 16 MB an array


@dataclass(frozen=True)
class Comparison:
    """Median certified radius of `run` over that of `baseline`, over all paired samples.

    Attributes:
        run: name of the run.
        baseline: name of the run it is compared with.
        samples: number of pairs.
        ratio: ratio of the medians; None where the baseline's median is 0.
        low: lower end of the 95 % paired bootstrap (percentile) interval, or None.
        high: upper end, or None; both are None where some resampled baseline median is 0.
        p: two-sided Wilcoxon signed-rank p-value; None where no pair differs.
    """

    run: str
    baseline: str
    samples: int
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval exists and leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def ratio_of_medians(run: np.ndarray, baseline: np.ndarray, axis: int = -1) -> Any:
    """Median of `run` over median of `baseline` along `axis`; not finite where the latter is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.median(run, axis=axis) / np.median(baseline, axis=axis)


def compare(results: Results, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Comparison]:
    """Every other run against the baseline; empty where no baseline is named."""
    baseline = results.summary.baseline
    if baseline is None:
        return []
    reference = results.column(baseline, "radius_certified")
    return [
        _compare(run, baseline, results.column(run, "radius_certified"), reference, seed, resamples)
        for run in results.runs
        if run != baseline
    ]


def _compare(
    run: str, baseline: str, ours: np.ndarray, theirs: np.ndarray, seed: int, resamples: int
) -> Comparison:
    ratio = float(ratio_of_medians(ours, theirs))
    low, high = _interval(ours, theirs, seed, resamples) if np.isfinite(ratio) else (None, None)
    p = float(stats.wilcoxon(ours, theirs).pvalue) if (ours != theirs).any() else None
    return Comparison(run, baseline, len(ours), ratio if np.isfinite(ratio) else None, low, high, p)


def _interval(
    ours: np.ndarray, theirs: np.ndarray, seed: int, resamples: int
) -> tuple[float | None, float | None]:
    if len(ours) < 2:
        return None, None
    # scipy 1.15 renamed the argument.
    name = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"
    with warnings.catch_warnings():
        # Resampled baseline medians of 0 are dealt with below.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (ours, theirs),
            ratio_of_medians,
            n_resamples=resamples,
            batch=max(1, _BATCH_ELEMENTS // len(ours)),
            vectorized=True,
            paired=True,
            confidence_level=CONFIDENCE,
            method="percentile",  # BCa's jackknife degenerates on a median
            **{name: np.random.default_rng(seed)},
        )
    if not np.isfinite(found.bootstrap_distribution).all():
        return None, None
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def comparison_line(comparison: Comparison) -> str:
    """The comparison as one line of plain text for below the table."""
    c = comparison
    names = f"{one_line(c.run)} against {one_line(c.baseline)}"
    if c.ratio is None:
        ratio = "ratio of median certified radii undefined (the baseline's median is 0)"
    elif c.low is None or c.high is None:
        ratio = f"ratio of median certified radii {c.ratio:.3g} (no bootstrap interval: too few or "
        ratio += "too many zero radii)"
    else:
        ratio = f"ratio of median certified radii {c.ratio:.3g} ({100 * CONFIDENCE:g} % paired "
        ratio += f"bootstrap interval {c.low:.3g} to {c.high:.3g})"
    test = "no pair differs" if c.p is None else f"Wilcoxon signed-rank {p_value(c.p)}"
    return f"{names}: {ratio}; {test}; n = {c.samples} pairs."
