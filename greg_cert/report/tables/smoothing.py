"""The table of the smoothed detector: probabilistic proofs about another function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from greg_cert.certificates.certified_metrics import average_certified_radius, median_radius
from greg_cert.certificates.method_columns import DECISION, SMOOTHING, has_smoothing
from greg_cert.certificates.methods import PROBABILISTIC
from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.columns import RadiusColumns, percents
from greg_cert.report.tables.sheets import COUNT, MEASURED, Column, Sheet, make_sheet


@dataclass(frozen=True)
class SmoothingRow:
    """One run on the ID samples or on one OOD set.

    A radius is counted where the decision is the right one (accepted for ID, rejected for OOD);
    elsewhere it would be the radius of staying wrong, and counts as 0, as does an abstention.
    """

    run: str
    samples_of: str
    samples: int
    right: float
    wrong: float
    abstained: float
    median: float
    mean: float


def smoothing_rows(results: Results) -> list[SmoothingRow]:
    """One record for each run and population with decisions of a smoothed detector."""
    side = results.summary.side
    rows = []
    for run in results.runs:
        frame = results.of(run)
        if has_smoothing(frame):
            rows.append(_row(run, "ID test" if side == "id" else "OOD test", frame, side))
        for dataset in results.ood_sets(run):
            ood = results.ood_of(run, dataset)
            if ood is not None and has_smoothing(ood):
                rows.append(_row(run, dataset, ood, "ood"))
    return rows


def _row(run: str, samples_of: str, frame: pd.DataFrame, side: str) -> SmoothingRow:
    right = (frame[DECISION] == ("accepted" if side == "id" else "rejected")).to_numpy(bool)
    wrong = (frame[DECISION] == ("rejected" if side == "id" else "accepted")).to_numpy(bool)
    values = frame[SMOOTHING].to_numpy(dtype=float, na_value=np.nan)
    radii = np.where(right, values, 0.0)
    return SmoothingRow(
        run=run,
        samples_of=samples_of,
        samples=len(frame),
        right=float(right.mean()),
        wrong=float(wrong.mean()),
        abstained=float((~right & ~wrong).mean()),
        median=median_radius(radii),
        mean=average_certified_radius(radii),
    )


def smoothing_sheet(results: Results) -> Sheet | None:
    """The table, or None where no smoothed detector was asked."""
    rows = smoothing_rows(results)
    if not rows:
        return None
    norm = results.summary.norm
    digits = wording.radius_digits([value for r in rows for value in (r.median, r.mean)])
    radii = RadiusColumns(norm, digits, max_radius=None)
    median, mean = (f"Smoothed detector's {{}} radius, {of}" for of in ("median", "mean"))
    columns: list[Column[SmoothingRow]] = [
        percents(PROBABILISTIC, "Right decision, %", "right, %", lambda r: r.right, key="right"),
        percents(PROBABILISTIC, "Wrong decision, %", "wrong, %", lambda r: r.wrong, key="wrong"),
        radii.column(PROBABILISTIC, median, "median", lambda r: r.median, key="smoothed"),
        radii.column(PROBABILISTIC, mean, "mean", lambda r: r.mean, key="smoothed-mean"),
        percents(MEASURED, "Abstained, %", "abstained", lambda r: r.abstained, key="abstained"),
        Column(COUNT, "n", "n", lambda r: str(r.samples), key="n"),
    ]
    return make_sheet(
        "smoothing",
        "Smoothed detector",
        {"run": lambda row: row.run, "samples": lambda row: row.samples_of},
        columns,
        rows,
        caption=_caption(results.summary),
    )


def confidence_words(summary: Summary) -> str:
    """The confidence that belongs to every statement about the smoothed detector."""
    if summary.smoothing is None:
        return "at a confidence that is not recorded"
    return f"confidence {wording.confidence(summary.smoothing.alpha)} each"


def _caption(summary: Summary) -> str:
    settings = summary.smoothing
    noise = (
        "Gaussian noise (settings not recorded)"
        if settings is None
        else f"Gaussian noise of \u03c3 = {settings.sigma:g}, {settings.n} draws a sample"
    )
    return (
        f"About the smoothed detector, {confidence_words(summary)}: it answers as most noisy "
        f"copies of a sample do under the base detector, with {noise}. Nothing here is about the "
        "detector of the other tables, and the confidence is for one sample, not for all at once. "
        "Right: accepted for ID samples, rejected for OOD samples. Medians and means over all n "
        "samples, with radius 0 where the decision is wrong or withheld (abstained)."
    )
