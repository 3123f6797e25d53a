"""The tables of the OOD side: how far OOD samples stay rejected, and what holds at fixed radii."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greg_cert.certificates.method_columns import OPTIONAL_METHODS
from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.columns import method_columns, method_words
from greg_cert.report.tables.comparison import Comparison, comparison_lines
from greg_cert.report.tables.ood_rows import BallRow, OodRow, ball_rows, ood_rows
from greg_cert.report.tables.sheets import Column, Sheet, make_sheet


def ood_sheets(results: Results, comparisons: Sequence[Comparison] = ()) -> list[Sheet]:
    """One table of radii and one of shares and areas at fixed radii, where there are such data."""
    sheets = []
    if rows := ood_rows(results):
        sheets.append(
            make_sheet(
                "ood-side",
                "OOD side",
                ("run", "OOD set"),
                _ood_columns(results.summary, rows),
                rows,
                lambda row: (row.run, row.dataset),
                caption=_ood_caption(results.summary, rows),
                remarks=comparison_lines([c for c in comparisons if c.dataset is not None]),
            )
        )
    if balls := ball_rows(results):
        norm = results.summary.norm
        sheets.append(
            make_sheet(
                "ood-radii",
                "OOD side at fixed radii",
                ("run", "OOD set", "radius"),
                _ball_columns(balls),
                balls,
                lambda row: (row.run, row.dataset, wording.fixed_radius(row.radius, norm)),
                caption=_ball_caption(results, balls),
            )
        )
    return sheets


def _ood_columns(summary: Summary, rows: list[OodRow]) -> list[Column[OodRow]]:
    digits = wording.radius_digits(
        [v for r in rows for v in (r.certified_median, r.certified_mean, r.attack_median)]
    )
    norm = wording.norm_name(summary.norm)
    methods = [m for m in OPTIONAL_METHODS if any(m.column in row.methods for row in rows)]

    def radius(pick: Callable[[OodRow], float]) -> Callable[[OodRow], str]:
        return lambda row: wording.radius(pick(row), digits, summary.max_radius)

    def more(status: str) -> list[Column[OodRow]]:
        return method_columns(methods, status, summary, digits, lambda row: row.methods)

    return [
        Column("measured", "Clean FPR, %", "FPR", lambda r: wording.percent(r.clean_fpr)),
        Column(
            "proof",
            "With a certificate, %",
            "proven, %",
            lambda r: wording.percent(r.certified / r.samples),
        ),
        Column(
            "proof",
            f"Certified {norm} radius, median",
            "median",
            radius(lambda r: r.certified_median),
        ),
        Column(
            "proof", f"Certified {norm} radius, mean", "mean", radius(lambda r: r.certified_mean)
        ),
        *more("proof"),
        *more("estimate"),
        Column(
            "upper bound",
            f"Attack {norm} radius, median",
            "attack",
            radius(lambda r: r.attack_median),
        ),
        Column(
            "check", "Violations", "viol.", lambda r: str(r.violations), lambda r: r.violations > 0
        ),
        Column("count", "n", "n", lambda r: str(r.samples)),
    ]


def _ball_columns(rows: list[BallRow]) -> list[Column[BallRow]]:
    def percent(pick: Callable[[BallRow], float | None]) -> Callable[[BallRow], str]:
        return lambda row: wording.percent(pick(row))

    scored = any(row.scored is not None for row in rows)
    certified = any(row.samples is not None for row in rows)
    columns: list[Column[BallRow]] = []
    if scored:
        columns += [
            Column("measured", "Clean AUROC, %", "AUROC", percent(lambda r: r.auroc)),
            Column("upper bound", "Attacked AUROC, %", "AAUC, %", percent(lambda r: r.adversarial)),
            Column(
                "proof",
                "Guaranteed AUROC, lower bound, %",
                "GAUC \u2265, %",
                percent(lambda r: r.guaranteed),
            ),
        ]
    columns.append(
        Column(
            "proof",
            "Certified acceptance of ID, lower bound, %",
            "ID acc. \u2265, %",
            percent(lambda r: r.acceptance),
        )
    )
    if certified:
        columns += [
            Column(
                "proof",
                "Certified FPR, upper bound, %",
                "FPR \u2264, %",
                percent(lambda r: r.certified_fpr),
            ),
            Column(
                "lower bound",
                "Attacked FPR, %",
                "att. FPR, %",
                percent(lambda r: r.attacked_fpr),
            ),
        ]
    if scored:
        columns.append(
            Column(
                "check",
                "Violations",
                "viol.",
                lambda r: str(r.violations) if r.scored is not None else wording.MISSING,
                lambda r: r.violations > 0,
            )
        )
    return [*columns, Column("count", "n", "n", _count)]


def _count(row: BallRow) -> str:
    if row.samples is None or row.scored in (None, row.samples):
        return str(row.scored if row.samples is None else row.samples)
    return f"{row.samples} (AUROC: {row.scored})"


def _ood_caption(summary: Summary, rows: list[OodRow]) -> str:
    norm = wording.norm_name(summary.norm)
    searched = "" if summary.max_radius is None else f", searched up to {summary.max_radius:g}"
    return (
        f"Radii in the {norm} norm of raw pixels in [0,1], {wording.ball(summary)}{searched}, "
        "within which an OOD sample stays rejected; medians and means over all n samples, with "
        "radius 0 where the clean sample is already accepted as ID or nothing is proven. Clean "
        "FPR: share accepted as ID before any perturbation, at the threshold of the calibration "
        f"split (tpr = {summary.tpr:g}). Proof, upper bound and violations: as for the ID samples."
    ) + method_words({column for row in rows for column in row.methods})


def _ball_caption(results: Results, rows: list[BallRow]) -> str:
    norm = wording.norm_name(results.summary.norm)
    kept = "accepted and correctly classified" if results.summary.correct else "accepted"
    words = (
        f"What holds when every sample is moved in the worst way within the {norm} radius. "
        f"Certified acceptance: share of all ID samples proven to stay {kept}; the true share is "
        "at least that."
    )
    if any(row.samples is not None for row in rows):
        words += (
            " Certified FPR: share of all OOD samples not proven to stay rejected; attacked FPR: "
            "share that an attack made accepted as ID. The true false-positive rate under "
            "perturbation lies between the two. Both at the threshold of the calibration split."
        )
    if any(row.scored is not None for row in rows):
        words += (
            " Guaranteed AUROC (GAUC): OOD samples at the proven lower bound of their score, ID "
            "samples clean; attacked AUROC (AAUC): OOD samples at the lowest score that an attack "
            "found. The true AUROC with OOD samples perturbed lies between the two; ties count "
            f"against the detector. ID scores: the {results.samples} samples of the first table. "
            "Violations: bounds above a score found in the ball, expected 0."
        )
    return words
