"""Each run against the baseline, on the same samples: a ratio, a difference, and a rank test.

A ratio of medians says how much, the median of the paired differences says so without dividing, and
the Wilcoxon signed-rank test says whether chance would do. Where several radii are tested against
one baseline, p-values are corrected by Holm's method within each family: the runs by their
certified radii, the runs and OOD sets, the runs and single methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from greg_cert.certificates.method_columns import OPTIONAL_METHODS, holds
from greg_cert.certificates.methods import PROOF
from greg_cert.certificates.results import Results
from greg_cert.report.tables.bootstrap import resampled_medians
from greg_cert.report.wording import number, one_line, p_value

CONFIDENCE = 0.95
RESAMPLES = 9999
CERTIFIED = "certified radii"


@dataclass(frozen=True)
class Comparison:
    """Radii of `run` against those of `baseline`, over all paired samples.

    Attributes:
        samples: number of pairs.
        ratio: ratio of the medians; None where the baseline's median is 0.
        low: lower end of the 95 % paired bootstrap (percentile) interval of the ratio; with the
            upper end `high` None where some resampled baseline median is 0.
        p: two-sided Wilcoxon signed-rank p-value; None where no pair differs.
        difference: median of the paired differences, run less baseline, in raw pixels.
        difference_low: lower end of its interval; None, as `difference_high`, for one pair.
        holm: `p` corrected by Holm's method for the tests of its family.
        family: how many tests there are.
        dataset: the OOD set that they are about; None for the samples of the first table.
    """

    run: str
    baseline: str
    samples: int
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    difference: float = 0.0
    difference_low: float | None = None
    difference_high: float | None = None
    holm: float | None = None
    family: int = 1
    quantity: str = CERTIFIED
    dataset: str | None = None

    @property
    def main(self) -> bool:
        """Whether it is about the certified radii of the first table."""
        return self.dataset is None and self.quantity == CERTIFIED

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 1 and the corrected test is below 1 - `CONFIDENCE`."""
        if self.low is None or self.high is None or self.low <= 1 <= self.high:
            return False
        p = self.p if self.holm is None else self.holm
        return p is not None and p < 1 - CONFIDENCE


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected so that the chance of any false rejection stays that of one test.

    The k-th smallest of m is multiplied by m - k + 1, and none may be smaller than one before it
    (Holm, "A simple sequentially rejective multiple test procedure", 1979). None, a pair of samples
    without a difference, counts as 1 and stays None.
    """
    order = sorted(range(len(p_values)), key=lambda i: 1.0 if (p := p_values[i]) is None else p)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for k, i in enumerate(order):
        if (p := p_values[i]) is not None:
            least = max(least, min(1.0, (len(p_values) - k) * p))
            corrected[i] = least
    return corrected


def compare(results: Results, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Comparison]:
    """Every other run against the baseline; empty where no baseline is named.

    The certified radii come first, then those of single methods, then those of each OOD set. Of
    results that are a part of others, p-values are corrected for all runs that were compared.
    """
    if results.whole is not None:
        every = compare(results.whole, seed=seed, resamples=resamples)
        return [c for c in every if {c.run, c.baseline} <= set(results.runs)]
    if (baseline := results.summary.baseline) is None:
        return []
    others = [run for run in results.runs if run != baseline]
    reference, column = results.of(baseline), "radius_certified"

    def paired(ours: pd.DataFrame, theirs: pd.DataFrame, name: str = column) -> Comparison:
        return _compare(ours, theirs, name, seed, resamples)

    found = [paired(results.of(run), reference) for run in others]
    methods = [
        replace(paired(results.of(run), reference, m.column), quantity=f"{m.title} radii")
        for run in others
        for m in OPTIONAL_METHODS
        if m.status == PROOF
        and all(holds(rows, m.column) for rows in (results.of(run), reference))
        # The only method holds for is the certified radius itself.
        and not _same(results, m.column)
    ]
    sets = []
    for run in others:
        for dataset in results.ood_sets(baseline):
            ours, theirs = (results.ood_of(name, dataset) for name in (run, baseline))
            if ours is None or theirs is None:
                continue
            if len(np.intersect1d(ours["index"], theirs["index"])):
                sets.append(replace(paired(ours, theirs), dataset=dataset))
    return [c for family in (found, methods, sets) for c in _corrected(family)]


def _same(results: Results, column: str) -> bool:
    """Whether a method's radii are the certified ones, which are compared already."""
    return all(
        np.array_equal(results.column(run, column), results.column(run, "radius_certified"))
        for run in results.runs
    )


def _corrected(family: list[Comparison]) -> list[Comparison]:
    ps = holm([c.p for c in family])
    return [replace(c, holm=p, family=len(family)) for c, p in zip(family, ps, strict=True)]


def _compare(
    ours: pd.DataFrame, theirs: pd.DataFrame, column: str, seed: int, resamples: int
) -> Comparison:
    both = ours[["index", column]].merge(theirs[["index", column]], on="index")
    run, baseline = (
        both[f"{column}_{k}"].to_numpy(dtype=np.float64, na_value=np.nan) for k in "xy"
    )
    from scipy import stats  # takes a second to import, which most commands need not wait for

    low, high, least, most = _intervals(run, baseline, seed, resamples)
    middle = float(np.median(baseline))
    return Comparison(
        str(ours["run"].iloc[0]),
        str(theirs["run"].iloc[0]),
        len(both),
        float(np.median(run)) / middle if middle else None,
        low if middle else None,
        high if middle else None,
        float(stats.wilcoxon(run, baseline).pvalue) if (run != baseline).any() else None,
        float(np.median(run - baseline)),
        least,
        most,
    )


def _intervals(
    ours: np.ndarray, theirs: np.ndarray, seed: int, resamples: int
) -> tuple[float | None, float | None, float | None, float | None]:
    """Ends of the intervals of the ratio and of the difference, over the same resamples."""
    if len(ours) < 2:
        return None, None, None, None
    # Percentiles of the resamples: BCa's jackknife degenerates on a median.
    medians = resampled_medians(np.stack([ours, theirs, ours - theirs]), resamples, seed)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    least, most = map(float, np.quantile(medians[:, 2], tails))
    if not medians[:, 1].all():
        return None, None, least, most
    low, high = map(float, np.quantile(medians[:, 0] / medians[:, 1], tails))
    return low, high, least, most


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The comparisons as lines of plain text, and before those of several what was corrected."""
    lines = []
    if any(c.family > 1 for c in comparisons):
        baselines = list(dict.fromkeys(one_line(c.baseline) for c in comparisons))
        families = list(dict.fromkeys(c.family for c in comparisons))
        lines.append(
            f"All comparisons are with one baseline, {', '.join(baselines)}; p-values are "
            f"corrected by Holm's method over {' and '.join(map(str, families))} tests."
        )
    return [*lines, *map(comparison_line, comparisons)]


def comparison_line(comparison: Comparison) -> str:
    """The comparison as one line of plain text for below the table."""
    c = comparison
    names = f"{one_line(c.run)} against {one_line(c.baseline)}"
    if c.dataset is not None:
        names += f" on {one_line(c.dataset)}"
    words = f"ratio of median {c.quantity}"
    if c.ratio is None:
        ratio = f"{words} undefined (the baseline's median is 0)"
    elif c.low is None or c.high is None:
        ratio = f"{words} {c.ratio:.3g} (no bootstrap interval: too few or too many zero radii)"
    else:
        ratio = f"{words} {c.ratio:.3g} ({100 * CONFIDENCE:g} % paired bootstrap interval "
        ratio += f"{c.low:.3g} to {c.high:.3g})"
    return f"{names}: {ratio}; {difference_words(c)}; {rank_words(c)}; n = {c.samples} pairs."


def difference_words(comparison: Comparison) -> str:
    """The median paired difference with its interval."""
    low, high = comparison.difference_low, comparison.difference_high
    ends = (
        "" if low is None or high is None else f" ({number(low, '.3g')} to {number(high, '.3g')})"
    )
    return f"median paired difference {number(comparison.difference, '.3g')}{ends}"


def rank_words(comparison: Comparison) -> str:
    """The rank test, corrected where it is one of several."""
    c = comparison
    if c.p is None:
        return "no pair differs"
    words = f"Wilcoxon signed-rank {p_value(c.p)}"
    if c.family == 1 or c.holm is None:
        return words
    return f"{words}, after Holm's correction {p_value(c.holm)}"
