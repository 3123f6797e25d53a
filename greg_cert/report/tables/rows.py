"""The numbers of the table of runs, one record per run, computed from the samples.

Medians and means run over **all** n samples of a run: a rejected or undecided sample counts as
radius 0. An attack that found nothing counts as infinity, so a median attack radius may be
infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.certificates.certified_metrics import average_certified_radius, median_radius
from greg_cert.certificates.method_columns import CLEVER, PVALUE, holds, methods_of
from greg_cert.certificates.results import Results

FIT_LEVEL = 0.05
"""A CLEVER fit is called refused where its goodness-of-fit p-value lies below this."""


@dataclass(frozen=True, kw_only=True)
class SideRow:
    """One run on its ID samples or on one OOD set; radii in raw pixels.

    `methods` is the median radius of each optional method over all samples that have one, by
    column. Proofs have one for every sample; the CLEVER estimate may lack some.
    """

    run: str
    samples: int
    certified: int  # how many have a proof
    wrong: int  # how many are on the wrong side before any perturbation
    certified_median: float
    certified_mean: float
    attack_median: float
    methods: dict[str, float]
    violations: int  # how many certificates an attack contradicts

    @property
    def radii(self) -> tuple[float, ...]:
        """What is certified and attacked."""
        return self.certified_median, self.certified_mean, self.attack_median


def side_numbers(run: str, rows: pd.DataFrame) -> dict[str, Any]:
    """The fields of `SideRow` for the certificates of one run on one set of samples."""
    certified = _numbers(rows, "radius_certified")
    return {
        "run": run,
        "samples": len(rows),
        "certified": int((rows["status"] == "certified").sum()),
        "wrong": int((rows["status"] == "rejected").sum()),
        "certified_median": median_radius(certified),
        "certified_mean": average_certified_radius(certified),
        "attack_median": median_radius(_numbers(rows, "radius_attack")),
        "methods": {
            m.column: float(np.nanmedian(_numbers(rows, m.column))) for m in methods_of(rows)
        },
        "violations": int(rows["violation"].sum()),
    }


@dataclass(frozen=True, kw_only=True)
class Row(SideRow):
    """What the table says about one run; rates are fractions, None where there is none."""

    id_accuracy: float | None
    fpr: float | None
    auroc: float | None
    lipschitz_median: float
    gradient_median: float
    attacks_found: int
    share: float | None
    clever_above_attack: float | None
    clever_fit_refused: float | None


def share(certified: np.ndarray, attack: np.ndarray, kept: np.ndarray) -> float | None:
    """Median over samples (n,) of radius_certified / radius_attack; None where none has a ratio.

    The true radius lies between the two, so 1 would mean that the proof leaves no gap. Samples on
    the wrong side clean (`kept` False), and those without an attack (infinite), have no ratio.
    """
    usable = kept & np.isfinite(attack) & (attack > 0)
    return float(np.median(certified[usable] / attack[usable])) if usable.any() else None


def table_rows(results: Results) -> list[Row]:
    """One record per run, in the summary's order."""
    return [_row(results, run) for run in results.runs]


def _row(results: Results, run: str) -> Row:
    record, rows, kept = results.summary.runs[run], results.of(run), results.kept(run)
    attack = results.column(run, "radius_attack")
    above = refused = None
    if holds(rows, CLEVER):
        estimate = results.column(run, CLEVER)
        above = _mean((estimate > attack)[kept & ~np.isnan(estimate)])
    if holds(rows, PVALUE):
        p = results.column(run, PVALUE)
        refused = _mean((p < FIT_LEVEL)[kept & ~np.isnan(p)])
    return Row(
        **side_numbers(run, rows),
        id_accuracy=record.id_accuracy,
        fpr=record.fpr95,
        auroc=record.auroc,
        lipschitz_median=float(np.median(results.column(run, "radius_lipschitz"))),
        gradient_median=float(np.median(results.column(run, "radius_gradient"))),
        attacks_found=int((kept & np.isfinite(attack)).sum()),
        share=share(results.column(run, "radius_certified"), attack, kept),
        clever_above_attack=above,
        clever_fit_refused=refused,
    )


def _numbers(rows: pd.DataFrame, column: str) -> np.ndarray:
    return rows[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _mean(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if len(chosen) else None
