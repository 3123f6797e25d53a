"""The tables of the OOD side: how far OOD samples stay rejected, and what holds at fixed radii."""

from __future__ import annotations

from greg_cert.certificates.methods import ESTIMATE, PROOF, UPPER
from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.columns import (
    SAMPLES,
    VIOLATIONS,
    RadiusColumns,
    percents,
    radius_words,
)
from greg_cert.report.tables.comparison import Comparison, comparison_lines
from greg_cert.report.tables.ood_rows import BallRow, OodRow, ball_rows, ood_rows
from greg_cert.report.tables.sheets import CHECK, COUNT, LOWER, MEASURED, Column, Sheet, make_sheet


def ood_sheets(results: Results, comparisons: list[Comparison]) -> list[Sheet]:
    """One table of radii and one of shares and areas at fixed radii, where there are such data."""
    sheets = []
    if rows := ood_rows(results):
        sheets.append(
            make_sheet(
                "ood-side",
                "OOD side",
                {"run": lambda row: row.run, "OOD set": lambda row: row.dataset},
                _ood_columns(results.summary, rows),
                rows,
                caption=_ood_caption(results.summary),
                remarks=comparison_lines([c for c in comparisons if c.dataset is not None]),
            )
        )
    if balls := ball_rows(results):
        norm = results.summary.norm
        sheets.append(
            make_sheet(
                "ood-radii",
                "OOD side at fixed radii",
                {
                    "run": lambda row: row.run,
                    "OOD set": lambda row: row.dataset,
                    "radius": lambda row: wording.fixed_radius(row.radius, norm),
                },
                _ball_columns(results, balls),
                balls,
                caption=_ball_caption(results),
            )
        )
    return sheets


def _ood_columns(summary: Summary, rows: list[OodRow]) -> list[Column[OodRow]]:
    values = [value for row in rows for value in row.radii]
    radii = RadiusColumns(summary.norm, wording.radius_digits(values), summary.max_radius)
    return [
        percents(
            *(MEASURED, "Clean FPR, %", "FPR", lambda r: r.wrong / r.samples),
            key="fpr",
            note="Clean FPR: share accepted as ID before any perturbation, at the threshold of the "
            f"calibration split (tpr = {summary.tpr:g}).",
        ),
        percents(
            *(PROOF, "With a certificate, %", "proven, %", lambda r: r.certified / r.samples),
            key="proven",
        ),
        *radii.certified(summary),
        *radii.methods(PROOF, rows),
        *radii.methods(ESTIMATE, rows),
        radii.attack(),
        VIOLATIONS,
        SAMPLES,
    ]


def _ball_columns(results: Results, rows: list[BallRow]) -> list[Column[BallRow]]:
    scored = any(row.scored is not None for row in rows)
    columns: list[Column[BallRow]] = []
    if scored:
        guaranteed = "Guaranteed AUROC, lower bound, %"
        between = (
            "Guaranteed AUROC (GAUC): OOD samples at the proven lower bound of their score, ID "
            "samples clean; attacked AUROC (AAUC): OOD samples at the lowest score that an attack "
            "found. The true AUROC with OOD samples perturbed lies between the two; ties count "
            f"against the detector. ID scores: the {results.samples} samples of the first table."
        )
        columns += [
            percents(MEASURED, "Clean AUROC, %", "AUROC", lambda r: r.auroc, key="auroc"),
            percents(
                *(UPPER, "Attacked AUROC, %", "AAUC, %", lambda r: r.adversarial),
                key="auroc-attacked",
                note=between,
            ),
            percents(
                *(PROOF, guaranteed, "GAUC \u2265, %", lambda r: r.guaranteed),
                key="auroc-guaranteed",
                note=between,
            ),
        ]
    kept = "accepted and correctly classified" if results.summary.correct else "accepted"
    acceptance = "Certified acceptance of ID, lower bound, %"
    columns.append(
        percents(
            *(PROOF, acceptance, "ID acc. \u2265, %", lambda r: r.acceptance),
            key="acceptance",
            note=f"Certified acceptance: share of all ID samples proven to stay {kept}; the true "
            "share is at least that.",
        )
    )
    if any(row.samples is not None for row in rows):
        certified = "Certified FPR, upper bound, %"
        between = (
            "Certified FPR: share of all OOD samples not proven to stay rejected; attacked FPR: "
            "share that an attack made accepted as ID. The true false-positive rate under "
            "perturbation lies between the two."
        )
        columns += [
            percents(
                *(PROOF, certified, "FPR \u2264, %", lambda r: r.certified_fpr),
                key="fpr-certified",
                note=between,
            ),
            percents(
                *(LOWER, "Attacked FPR, %", "att. FPR, %", lambda r: r.attacked_fpr),
                key="fpr-attacked",
                note=between,
            ),
        ]
    if scored:
        columns.append(
            Column(
                CHECK,
                "Violations",
                "viol.",
                lambda r: str(r.violations) if r.scored is not None else wording.MISSING,
                lambda r: r.violations > 0,
                key="violations",
                note="Violations: bounds above a score found in the ball, expected 0.",
            )
        )
    return [*columns, Column(COUNT, "n", "n", _count, key="n")]


def _count(row: BallRow) -> str:
    if row.samples is None or row.scored in (None, row.samples):
        return str(row.scored if row.samples is None else row.samples)
    return f"{row.samples} (AUROC: {row.scored})"


def _ood_caption(summary: Summary) -> str:
    return (
        f"{radius_words(summary)}, "
        "within which an OOD sample stays rejected; medians and means over all n samples, with "
        "radius 0 where the clean sample is already accepted as ID or nothing is proven."
    )


def _ball_caption(results: Results) -> str:
    norm = wording.norm_name(results.summary.norm)
    return (
        f"What holds when every sample is moved in the worst way within the {norm} radius, at the "
        "threshold of the calibration split."
    )
