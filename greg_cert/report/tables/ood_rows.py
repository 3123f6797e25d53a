"""The numbers of the OOD side: a record a run and OOD set, and one for each fixed radius too.

Shares are over **all** OOD samples of a set at the run's own threshold. A proof gives the upper end
of the false-positive rate under perturbation and an attack the lower one; for areas under the ROC
curve it is the other way round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from greg_cert.certificates.certified_metrics import (
    adversarial_auroc,
    attacked_fpr,
    certified_acceptance,
    certified_fpr,
    clean_auroc,
    guaranteed_auroc,
)
from greg_cert.certificates.results import Results
from greg_cert.metrics import FloatArray
from greg_cert.report.tables.rows import SideRow, side_numbers


@dataclass(frozen=True, kw_only=True)
class OodRow(SideRow):
    """One run on one OOD set; radii are those of staying rejected."""

    dataset: str


@dataclass(frozen=True)
class BallRow:
    """One run on one OOD set within one radius; None where a file does not say."""

    run: str
    dataset: str
    radius: float
    samples: int | None
    scored: int | None
    acceptance: float  # lower bound of the share of ID samples accepted under perturbation
    certified_fpr: float | None  # upper bound of the false-positive rate
    attacked_fpr: float | None  # lower bound of it
    auroc: float | None  # of the clean scores
    adversarial: float | None  # upper bound of the AUROC under perturbation
    guaranteed: float | None  # lower bound of it
    violations: int  # samples whose bound lies above a score found in the ball


def ood_rows(results: Results) -> list[OodRow]:
    """One record for each run and OOD set with certificates, in the order of runs and file."""
    return [
        OodRow(dataset=dataset, **side_numbers(run, rows))
        for run in results.runs
        for dataset in results.ood_sets(run)
        if (rows := results.ood_of(run, dataset)) is not None
    ]


def ball_rows(results: Results) -> list[BallRow]:
    """One record for each run, OOD set and fixed radius."""
    sets = [(run, dataset) for run in results.runs for dataset in results.ood_sets(run)]
    radii = fixed_radii(results)
    return [_ball_row(results, run, dataset, radius) for run, dataset in sets for radius in radii]


def fixed_radii(results: Results) -> list[float]:
    """The radii of the score bounds; without any, round ones near the median proven OOD radius."""
    if results.ood_scores is not None:
        radii = np.unique(results.ood_scores["radius"].to_numpy(dtype=float))
        return [float(r) for r in radii if r > 0]
    if results.ood is None:
        return []
    summary = results.summary
    for column in ("radius_certified", "radius_attack"):
        values = results.ood[column].to_numpy(dtype=float)
        values = values[np.isfinite(values) & (values > 0)]
        if len(values):
            middle = float(np.median(values))
            found = {round_radius(k * middle, summary.norm) for k in (0.5, 1.0, 2.0)}
            limit = math.inf if summary.max_radius is None else summary.max_radius
            return sorted(r for r in found if r <= limit)
    return []


def round_radius(value: float, norm: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten; in the maximum norm, of 1, 2, 4 ... / 255."""
    if math.isinf(norm) and 255 * value >= 0.75:
        return float(2 ** max(0, round(math.log2(255 * value))) / 255)
    power = math.floor(math.log10(value))
    choices = [float(f"{m}e{power}") for m in (1, 2, 5, 10)]
    return min(choices, key=lambda choice: abs(math.log(choice / value)))


def contradicted(scores: pd.DataFrame) -> int:
    """Number of rows whose proven bound lies above a score that occurs in the ball."""
    return int((scores["score_bound"].to_numpy(float) > lowest_found(scores)).sum())


def lowest_found(scores: pd.DataFrame) -> FloatArray:
    """The lowest score known in each ball, whose centre belongs to it, shape (n,)."""
    lowest: FloatArray = scores[["score_attack", "score"]].to_numpy(float).min(axis=1)
    return lowest


def _ball_row(results: Results, run: str, dataset: str, radius: float) -> BallRow:
    rows, scores = results.ood_of(run, dataset), results.ood_scores_of(run, dataset)
    high = low = area = attacked = guaranteed = None
    if rows is not None:
        high = float(certified_fpr(rows["radius_certified"].to_numpy(float), radius)[0])
        low = float(attacked_fpr(rows["radius_attack"].to_numpy(float), radius)[0])
    here = None if scores is None else scores[scores["radius"] == radius]
    if here is not None and len(here):
        ids = results.column(run, "score")
        area = clean_auroc(ids, here["score"].to_numpy(float))
        attacked = adversarial_auroc(ids, lowest_found(here))
        guaranteed = guaranteed_auroc(ids, here["score_bound"].to_numpy(float))
    return BallRow(
        run=run,
        dataset=dataset,
        radius=radius,
        samples=None if rows is None else len(rows),
        scored=len(here) if here is not None and len(here) else None,
        acceptance=float(certified_acceptance(results.column(run, "radius_certified"), radius)[0]),
        certified_fpr=high,
        attacked_fpr=low,
        auroc=area,
        adversarial=attacked,
        guaranteed=guaranteed,
        violations=0 if here is None else contradicted(here),
    )
