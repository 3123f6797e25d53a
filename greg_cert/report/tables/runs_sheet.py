"""The table of runs: one row a run, and a line a comparison with the baseline."""

from __future__ import annotations

from greg_cert.certificates.methods import ESTIMATE, PROOF
from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.columns import (
    SAMPLES,
    VIOLATIONS,
    RadiusColumns,
    method_words,
    percents,
    radius_words,
)
from greg_cert.report.tables.comparison import Comparison, comparison_lines
from greg_cert.report.tables.rows import Row, table_rows
from greg_cert.report.tables.sheets import CHECK, MEASURED, Column, Sheet, make_sheet


def runs_sheet(results: Results, comparisons: list[Comparison]) -> Sheet:
    """The table, for all its forms."""
    rows = table_rows(results)
    return make_sheet(
        "greg-cert",
        "Runs",
        {"run": lambda row: row.run},
        _columns(results.summary, rows),
        rows,
        caption=_caption(results.summary, rows),
        remarks=[
            *ladder_lines(results.summary),
            *comparison_lines([c for c in comparisons if c.main]),
            *comparison_lines([c for c in comparisons if c.dataset is None and not c.main]),
        ],
    )


def ladder_lines(summary: Summary) -> list[str]:
    """For each run that the method `best` proved: which methods gave radii, and what ended it."""

    def counts(found: dict[str, int]) -> str:
        return ", ".join(f"{name} {n}" for name, n in sorted(found.items(), key=lambda c: -c[1]))

    return [
        f"{run}: radii by {counts(record.radius_method)}; stopped by {counts(record.stopped_by)}."
        for run, record in summary.runs.items()
        if record.radius_method and record.stopped_by
    ]


def _columns(summary: Summary, rows: list[Row]) -> list[Column[Row]]:
    """The columns after the run's name, grouped by the status of their numbers."""
    values = [value for row in rows for value in (*row.radii, *row.methods.values())]
    radii = RadiusColumns(summary.norm, wording.radius_digits(values), summary.max_radius)
    fpr, recall = wording.fpr_name(summary.tpr), f"{100 * summary.tpr:g} % ID recall"
    lipschitz, first_order = "Lipschitz {} radius, median", "First-order {} radius, median"
    above, refused = "CLEVER above attack, %", "CLEVER fit refused at 5 %, %"
    columns: list[Column[Row]] = [
        percents(MEASURED, "ID accuracy, %", "ID acc.", lambda r: r.id_accuracy),
        percents(MEASURED, f"{fpr} at {recall}, %", fpr, lambda r: r.fpr),
        percents(MEASURED, "AUROC, %", "AUROC", lambda r: r.auroc),
        *radii.certified(),
        radii.column(PROOF, lipschitz, "Lipschitz", lambda r: r.lipschitz_median),
        *radii.methods(PROOF, rows),
        radii.column(ESTIMATE, first_order, "1st order", lambda r: r.gradient_median),
        *radii.methods(ESTIMATE, rows),
        radii.attack(),
        percents(CHECK, "Certified / attack, median %", "share, %", lambda r: r.share, 1),
    ]
    if any(row.clever_above_attack is not None for row in rows):
        short = "CLEVER > attack, %"
        columns.append(percents(CHECK, above, short, lambda r: r.clever_above_attack, 1))
    if any(row.clever_fit_refused is not None for row in rows):
        columns.append(
            percents(CHECK, refused, "CLEVER misfit, %", lambda r: r.clever_fit_refused, 1)
        )
    return [*columns, VIOLATIONS, SAMPLES]


def _caption(summary: Summary, rows: list[Row]) -> str:
    """What the table shows, in which unit and convention, as plain text."""
    tpr = f"{100 * summary.tpr:g} %"
    counts = sorted({row.samples for row in rows})
    n = " to ".join(str(value) for value in {counts[0]: 0, counts[-1]: 0})
    return (
        f"{radius_words(summary)}; "
        f"n = {n} {wording.population(summary)}, medians and means over all of them, with radius 0 "
        f"where the clean sample is already {wording.wrong_side(summary)} or nothing is proven. "
        f"The threshold accepts {tpr} of the ID calibration split (tpr = {summary.tpr:g}); "
        f"{wording.fpr_name(summary.tpr)} is the share of OOD samples accepted at {tpr} ID recall. "
        "Proof: certified by bound propagation, or by a Lipschitz bound. Upper bound: the smallest "
        "perturbation that an attack found. Estimate: margin over gradient norm at the sample, no "
        "proof. Certified / attack: median of the per-sample ratio, over samples with an attack "
        "found. Violations: certificates that an attack contradicts, expected 0."
        f"{method_words(rows)}"
    )
