"""The paper's claims, each as a number that two runs of one seed differ by, and what becomes of it.

Runs are paired by training seed: same data, same first weights, same test samples. An interval is
Student's, 95 %, of the mean difference over the seeds, and so covers what another training would
do. Of a claim that something improves:

* **refuted:** the interval lies below `least`, the smallest gain that would matter;
* **confirmed:** it lies above 0, and reaches that gain;
* **undecided:** it holds both;
* **nothing to gain:** the baseline is within `least` of the best value there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import Any

from page_parts import spread
from scipy import stats

_TOO_FEW = ("one seed", "two seeds")  # for a verdict
Cell = dict[str, Any]
Measure = Callable[[Cell], float]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval; ends are NaN for one seed."""

    mean: float
    low: float
    high: float
    seeds: int

    def text(self, digits: int, scale: float = 1.0) -> str:
        """The mean, and the interval in brackets."""
        mean, low, high = (
            f"{round(scale * value, digits) + 0.0:+.{digits}f}"  # no negative zero
            for value in (self.mean, self.low, self.high)
        )
        return mean if self.seeds < 2 else f"{mean} [{low}, {high}]"


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent values."""
    n = len(values)
    if n < 2:
        return Interval(values[0], math.nan, math.nan, n)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    return Interval(mean(values), mean(values) - half, mean(values) + half, n)


def over_seeds(cells: Mapping[int, Cell], measure: Measure, digits: int) -> str:
    """Mean and standard deviation over seeds."""
    values = [measure(cell) for cell in cells.values()]
    if any(math.isinf(v) for v in values):
        return "beyond the longest"
    return spread(values, digits)


def verdict(found: Interval, *, least: float, room: float) -> str:
    """Of a gain that should be positive; `room` is what the baseline leaves to gain."""
    if room < least:
        return "nothing to gain"
    if found.seeds <= len(_TOO_FEW):
        return _TOO_FEW[found.seeds - 1]
    if found.high < least:
        return "refuted"
    return "confirmed" if found.low > 0 else "undecided"


def harmless(found: Interval, *, most: float) -> str:
    """Of a loss: confirmed where the interval excludes one larger than `most`."""
    above = replace(found, mean=found.mean + most, low=found.low + most, high=found.high + most)
    return verdict(above, least=0.0, room=math.inf)


def groups_of(cell: Cell) -> list[str]:
    """Which groups its OOD sets are of, near ones first."""
    return [g for g in ("near", "far") if g in cell["groups"].values()]


def mean_of_sets(metric: str, group: str | None) -> Measure:
    """Mean of `auroc` or `fpr95` over the OOD sets of a group."""

    def value(cell: Cell) -> float:
        return mean(
            m[metric]
            for name, m in cell["ood"].items()
            if group is None or cell["groups"][name] == group
        )

    return value


def slope(of: str) -> Measure:
    """Median ‖∇S‖ of ID test samples (`id`), or the mean over OOD sets of theirs (`ood`)."""

    def value(cell: Cell) -> float:
        if of == "id":
            return float(cell["gradient"]["id"])
        return mean(v for name, v in cell["gradient"].items() if name != "id")

    return value


def column(cell: Cell, norm: str, name: str) -> list[float]:
    """Radii of all samples; an attack that found nothing counts as infinite."""
    radii = cell["radii"][norm]
    place = radii["columns"].index(name)
    return [math.inf if row[place] is None else float(row[place]) for row in radii["rows"]]


def accepted(cell: Cell, norm: str) -> list[bool]:
    """Which samples γ accepts."""
    return [bool(row[1]) for row in cell["radii"][norm]["rows"]]


def median_radius(norm: str, name: str) -> Measure:
    """Median over all samples, those that γ rejects as 0."""
    return lambda cell: float(median(column(cell, norm, name)))


def share(norm: str) -> Measure:
    """Median of certified / attacked over the accepted samples that an attack broke."""

    def value(cell: Cell) -> float:
        proven, broken = (column(cell, norm, f"radius_{k}") for k in ("certified", "attack"))
        pairs = zip(proven, broken, accepted(cell, norm), strict=True)
        return median(p / a for p, a, kept in pairs if kept and 0 < a < math.inf)

    return value


def exceeds(norm: str) -> Measure:
    """Share of the accepted samples whose one-point estimate exceeds what an attack needs."""

    def value(cell: Cell) -> float:
        guess, broken = (column(cell, norm, f"radius_{k}") for k in ("gradient", "attack"))
        pairs = list(zip(guess, broken, accepted(cell, norm), strict=True))
        return mean(float(g > a) for g, a, kept in pairs if kept)

    return value
