"""What the cells of a task say of each claim."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from grid.verdicts import (
    Cell,
    Interval,
    Measure,
    exceeds,
    groups_of,
    harmless,
    interval,
    mean_of_sets,
    median_radius,
    slope,
    verdict,
)

Cells = Mapping[str, Mapping[int, Cell]]  # by run and seed
Pair = tuple[str, str]  # a run, and what it is compared with

PENALTY: tuple[Pair, ...] = (("oe+grad", "oe"), ("greg", "energy"), ("poem+grad", "poem"))
TWO_ENDED: tuple[Pair, ...] = (("greg+", "greg"),)
PROOF: tuple[Pair, ...] = (("lipschitz", "energy"), ("lipschitz", "energy, far margins"))
PENALISED = (*PENALTY, ("greg+", "energy"), *PROOF)
ESTIMATED = ("energy", "greg", "greg+", "lipschitz")
_POINT = 0.01  # of accuracy
MATTERS = {"auroc": 0.005, "fpr95": 0.01}  # the smallest gains
_RATIO = math.log(1.05)
_SOME = 0.01  # of the samples


@dataclass(frozen=True)
class Line:
    """One claim about two runs."""

    claim: str
    runs: str
    what: str
    found: str
    verdict: str


def settled(cells: Cells) -> Iterator[Line]:
    """All claims that the cells have something to say of."""
    one = next(iter(next(iter(cells.values())).values()))
    groups = groups_of(one)
    for claim, pairs in (
        ("a: the penalty detects better", PENALTY),
        ("b: two-ended sampling detects better", TWO_ENDED),
        ("training for the proof detects better", PROOF),
    ):
        for pair in _known(pairs, cells):
            for group in groups:
                for metric in MATTERS:
                    yield _detection(claim, pair, cells, metric, group)
    for pair in _known(PENALISED, cells):
        found = interval(_pairs(pair, cells, lambda c: c["accuracy"]))
        yield Line(
            "c: accuracy is not harmed (1 point)",
            " − ".join(pair),
            "accuracy",
            f"{found.text(2, 100)} points",
            harmless(found, most=_POINT),
        )
    for pair in _known(PENALISED, cells):
        for of in ("id", "ood"):
            name = f"{of.upper()} ‖∇S‖"
            yield _ratio("d: gradient norms stay down", pair, cells, name, slope(of), -1)
    for pair in _known(PENALISED, cells) if "radii" in one else ():
        for norm, title in (("2", "ℓ2"), ("inf", "ℓ∞")):
            for kind in ("certified", "attack"):
                radius = median_radius(norm, f"radius_{kind}")
                yield _ratio("e: radii grow", pair, cells, f"{kind} {title}", radius, 1)
    for run in (run for run in ESTIMATED if run in cells and "radii" in one):
        for norm, title in (("2", "ℓ2"), ("inf", "ℓ∞")):
            found = interval([exceeds(norm)(cell) for cell in cells[run].values()])
            found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
            yield Line(
                "f: (γ − S)/‖∇S‖ exceeds an attack, of accepted samples",
                run,
                title,
                f"{found.text(0, 100)} %",
                verdict(found, least=_SOME, room=math.inf),
            )


def _known(pairs: Sequence[Pair], cells: Cells) -> list[Pair]:
    """Those of which some seed has both runs."""
    return [p for p in pairs if cells.get(p[0], {}).keys() & cells.get(p[1], {}).keys()]


def _pairs(pair: Pair, cells: Cells, measure: Measure) -> list[float]:
    """Differences, a seed each."""
    run, baseline = (cells[name] for name in pair)
    return [measure(run[s]) - measure(baseline[s]) for s in sorted(run.keys() & baseline.keys())]


def _detection(claim: str, pair: Pair, cells: Cells, metric: str, group: str) -> Line:
    value, higher = mean_of_sets(metric, group), metric == "auroc"
    found = interval(_pairs(pair, cells, value))
    base = mean(value(cell) for cell in cells[pair[1]].values())
    settled = verdict(
        found if higher else _negative(found),
        least=MATTERS[metric],
        room=1 - base if higher else base,
    )
    return Line(claim, " − ".join(pair), f"{group} {metric.upper()}", found.text(3), settled)


def _ratio(claim: str, pair: Pair, cells: Cells, name: str, measure: Measure, sign: int) -> Line:
    """Of two positive numbers; a claim that it is above 1, or below for a `sign` of -1."""

    def log(cell: Cell) -> float:
        value = measure(cell)
        return math.log(value) if value > 0 else -math.inf

    logs = _pairs(pair, cells, log)
    if not all(map(math.isfinite, logs)):
        return Line(claim, " / ".join(pair), name, "beyond what is measured", "–")
    found = interval(logs)
    text = f"× {math.exp(found.mean):.2f}"
    if found.seeds > 1:
        text += f" [{math.exp(found.low):.2f}, {math.exp(found.high):.2f}]"
    gain = found if sign > 0 else _negative(found)
    return Line(claim, " / ".join(pair), name, text, verdict(gain, least=_RATIO, room=math.inf))


def _negative(found: Interval) -> Interval:
    """Of the negated values."""
    return Interval(-found.mean, -found.high, -found.low, found.seeds)
