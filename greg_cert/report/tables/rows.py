"""The numbers of the table, one record per run, computed from the samples.

Medians and means run over **all** n samples of a run: a rejected or undecided sample counts as
radius 0. An attack that found nothing counts as infinity, so a median attack radius may be
infinite.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from greg_cert.certificates.certified_metrics import average_certified_radius, median_radius
from greg_cert.certificates.method_columns import CLEVER, PVALUE, holds, methods_of
from greg_cert.certificates.results import Results

FIT_LEVEL = 0.05
"""A CLEVER fit is called refused where its goodness-of-fit p-value lies below this."""


@dataclass(frozen=True)
class Row:
    """What the table says about one run; rates are fractions, radii in raw pixels."""

    run: str
    method: str
    samples: int
    certified: int
    rejected: int
    undecided: int
    id_accuracy: float | None
    fpr: float | None
    fpr_ood_recall: float | None
    auroc: float | None
    certified_median: float
    certified_mean: float
    lipschitz_median: float
    gradient_median: float
    attack_median: float
    attacks_found: int
    share: float | None
    violations: int
    estimate_above_attack: float | None
    methods: dict[str, float] = field(default_factory=dict)
    clever_above_attack: float | None = None
    clever_fit_refused: float | None = None


def share(certified: np.ndarray, attack: np.ndarray, kept: np.ndarray) -> float | None:
    """Median over samples of radius_certified / radius_attack, where an attack was found.

    The true radius lies between the two, so 1 would mean that the proof leaves no gap. Samples
    rejected before any perturbation, and those without an attack, have no ratio and are left out.

    Args:
        certified: proven radii, shape (n,).
        attack: radii of the attacks, infinite where none was found, shape (n,).
        kept: whether the clean sample is on the right side, shape (n,).

    Returns:
        The median, or None where no sample has a ratio.
    """
    usable = kept & np.isfinite(attack) & (attack > 0)
    return float(np.median(certified[usable] / attack[usable])) if usable.any() else None


def table_rows(results: Results) -> list[Row]:
    """One record per run, in the summary's order."""
    return [_row(results, run) for run in results.runs]


def _row(results: Results, run: str) -> Row:
    record = results.summary.runs[run]
    rows = results.of(run)
    kept = results.kept(run)
    certified = results.column(run, "radius_certified")
    attack = results.column(run, "radius_attack")
    estimate = results.column(run, "radius_gradient")
    status = rows["status"].value_counts()
    has_fit = kept & rows[PVALUE].notna().to_numpy() if holds(rows, PVALUE) else np.zeros(0, bool)
    return Row(
        run=run,
        method=record.method,
        samples=len(rows),
        certified=int(status.get("certified", 0)),
        rejected=int(status.get("rejected", 0)),
        undecided=int(status.get("undecided", 0)),
        id_accuracy=record.id_accuracy,
        fpr=record.fpr95,
        fpr_ood_recall=record.fpr95_ood_recall,
        auroc=record.auroc,
        certified_median=median_radius(certified),
        certified_mean=average_certified_radius(certified),
        lipschitz_median=float(np.median(results.column(run, "radius_lipschitz"))),
        gradient_median=float(np.median(estimate)),
        attack_median=median_radius(attack),
        attacks_found=int((kept & np.isfinite(attack)).sum()),
        share=share(certified, attack, kept),
        violations=int(rows["violation"].sum()),
        estimate_above_attack=float(np.mean(estimate[kept] > attack[kept])) if kept.any() else None,
        methods=method_medians(rows),
        clever_above_attack=_above(results.column(run, CLEVER), attack, kept)
        if holds(rows, CLEVER)
        else None,
        clever_fit_refused=float((results.column(run, PVALUE)[has_fit] < FIT_LEVEL).mean())
        if has_fit.any()
        else None,
    )


def method_medians(rows: pd.DataFrame) -> dict[str, float]:
    """Median radius of each optional method over all samples that have one, by column.

    Proofs have one for every sample; the CLEVER estimate may lack some.
    """
    return {
        m.column: float(np.nanmedian(rows[m.column].to_numpy(dtype=float, na_value=np.nan)))
        for m in methods_of(rows)
    }


def _above(estimate: np.ndarray, attack: np.ndarray, kept: np.ndarray) -> float | None:
    """Share of the samples with an estimate whose estimate a real attack undercuts."""
    usable = kept & ~np.isnan(estimate)
    return float(np.mean(estimate[usable] > attack[usable])) if usable.any() else None
