"""What post-hoc detectors add to the runs of a task: tables, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean

from page_parts import table

from grid.settled import MATTERS, Cells
from grid.verdicts import (
    Cell,
    Interval,
    Measure,
    groups_of,
    interval,
    mean_of_sets,
    over_seeds,
    verdict,
)


def detector_tables(cells: Cells) -> list[str]:
    """What post-hoc detectors add to a run's own score, the largest gain first."""
    lines: list[str] = []
    for run, of_run in cells.items():
        lines += [
            f"Claim g: post-hoc detectors on top of {run}, AUROC and its gain over the run's own "
            "score:",
            "",
            *detector_table(of_run),
            "",
        ]
    return lines


def detector_table(of_run: Mapping[int, Cell]) -> list[str]:
    """Of one run."""
    one = next(iter(of_run.values()))
    groups = groups_of(one)
    rows: list[tuple[float, list[str]]] = []
    for name in one["detectors"]:
        if why := failure(of_run, name):
            rows.append((-math.inf, [name, why, *["–"] * (2 * len(groups) - 1)]))
            continue
        values = [over_seeds(of_run, detected(name, group), 3) for group in groups]
        if name == "own":
            rows.append((math.inf, [name, *values, *[""] * len(groups)]))
            continue
        gains = [gain_over_own(of_run, name, group) for group in groups]
        words = [f"{found.text(3)}: {word}" for found, word in gains]
        rows.append((gains[0][0].mean, [name, *values, *words]))
    rows.sort(key=lambda r: -r[0])
    heads = ["detector", *(f"AUROC, {g}" for g in groups), *(f"gain, {g}" for g in groups)]
    return table(heads, [row for _, row in rows])


def best_detectors(of_run: Mapping[int, Cell]) -> str:
    """How many detectors gain over a run's own score for sure, and which the most, by group."""
    one, words = next(iter(of_run.values())), []
    names = [n for n in one["detectors"] if n != "own" and not failure(of_run, n)]
    for group in groups_of(one):
        gains = {name: gain_over_own(of_run, name, group) for name in names}
        sure = {n: found.mean for n, (found, word) in gains.items() if word == "confirmed"}
        text = f"{group}: **{len(sure)} of {len(gains)}**"
        if sure:
            most = max(sure, key=sure.__getitem__)
            text += f", most {most} ({sure[most]:+.3f})"
        words.append(text)
    return "; ".join(words)


def detected(name: str, group: str) -> Measure:
    """AUROC of a detector, the mean over a group's sets."""
    found = mean_of_sets("auroc", group)
    return lambda c: found({"ood": c["detectors"][name]["ood"], "groups": c["groups"]})


def failure(of_run: Mapping[int, Cell], name: str) -> str:
    """Why a detector gave nothing for some seed; empty where it did for all."""
    return next((f["error"] for c in of_run.values() if "error" in (f := c["detectors"][name])), "")


def gain_over_own(of_run: Mapping[int, Cell], name: str, group: str) -> tuple[Interval, str]:
    """AUROC that a detector gains over the run's own score, and the verdict."""
    value, own = detected(name, group), detected("own", group)
    found = interval([value(c) - own(c) for c in of_run.values()])
    base = mean(own(c) for c in of_run.values())
    return found, verdict(found, least=MATTERS["auroc"], room=1 - base)
