"""The comparisons with the baseline as a table, for a paper that has many of them."""

from __future__ import annotations

from collections.abc import Sequence

from greg_cert.report.tables.comparison import CONFIDENCE, Comparison
from greg_cert.report.tables.sheets import COUNT, Column, Sheet, make_sheet
from greg_cert.report.wording import MISSING, number, one_line, p_value

_RATIO, _DIFFERENCE, _TEST = "ratio of medians", "paired difference", "Wilcoxon"


def comparison_sheet(comparisons: Sequence[Comparison]) -> Sheet:
    """A row a comparison: run, radii, and what `comparison_line` says in words."""
    interval = f"{100 * CONFIDENCE:g} % interval"
    columns: list[Column[Comparison]] = [
        Column(_RATIO, "ratio of medians", "ratio", lambda c: _number(c.ratio)),
        Column(_RATIO, interval, interval, lambda c: _interval(c.low, c.high)),
        Column(_DIFFERENCE, "median paired difference", "median", lambda c: _number(c.difference)),
        Column(
            *(_DIFFERENCE, interval, interval),
            lambda c: _interval(c.difference_low, c.difference_high),
        ),
        Column(_TEST, "p after Holm's correction", "p, corrected", lambda c: _p(c.holm)),
    ]
    pairs = {c.samples for c in comparisons}
    if len(pairs) > 1:
        columns.append(Column(COUNT, "n", "n", lambda c: str(c.samples)))
    baselines = ", ".join(dict.fromkeys(one_line(c.baseline) for c in comparisons))
    families = " and ".join(map(str, dict.fromkeys(c.family for c in comparisons)))
    return make_sheet(
        "comparisons",
        f"Comparisons with {baselines}",
        {"run": lambda c: c.run, "radii": _radii},
        columns,
        comparisons,
        caption="Radii of a run against those of the baseline on the same "
        f"{'n' if len(pairs) > 1 else pairs.pop()} samples. Intervals: paired bootstrap, "
        f"{100 * CONFIDENCE:g} %. p: two-sided Wilcoxon signed-rank test, corrected by Holm's "
        f"method over {families} tests.",
    )


def _radii(comparison: Comparison) -> str:
    if comparison.dataset is not None:
        return f"OOD, {one_line(comparison.dataset)}"
    return comparison.quantity.removesuffix(" radii")


def _number(value: float | None) -> str:
    return MISSING if value is None else number(value, ".3g")


def _interval(low: float | None, high: float | None) -> str:
    return MISSING if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _p(value: float | None) -> str:
    return MISSING if value is None else p_value(value).removeprefix("p ").removeprefix("= ")
