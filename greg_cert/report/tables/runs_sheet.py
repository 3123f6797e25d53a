"""The table of runs: one row a run, and a line a comparison with the baseline."""

from __future__ import annotations

from greg_cert.certificates.methods import ESTIMATE, PROOF
from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.columns import (
    SAMPLES,
    SINGLE_METHODS,
    VIOLATIONS,
    RadiusColumns,
    percents,
    radius_words,
)
from greg_cert.report.tables.comparison import Comparison, comparison_lines
from greg_cert.report.tables.rows import Row, table_rows
from greg_cert.report.tables.setting import seed_words, threshold_words, training_words
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
        caption=_caption(results, rows),
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
        percents(*(MEASURED, "ID accuracy, %", "ID acc.", lambda r: r.id_accuracy), key="accuracy"),
        percents(
            *(MEASURED, f"{fpr} at {recall}, %", fpr, lambda r: r.fpr),
            key="fpr",
            note=f"{fpr} is the share of OOD samples accepted at {recall}.",
        ),
        percents(MEASURED, "AUROC, %", "AUROC", lambda r: r.auroc, key="auroc"),
        *radii.certified(summary),
        radii.column(
            *(PROOF, lipschitz, "Lipschitz", lambda r: r.lipschitz_median),
            key="lipschitz",
            note=SINGLE_METHODS,
        ),
        *radii.methods(PROOF, rows),
        radii.column(
            *(ESTIMATE, first_order, "1st order", lambda r: r.gradient_median),
            key="gradient",
            note="First order: margin over gradient norm at the sample, an estimate without proof.",
        ),
        *radii.methods(ESTIMATE, rows),
        radii.attack(),
        percents(
            *(CHECK, "Certified / attack, median %", "share, %", lambda r: r.share, 1),
            key="share",
            note="Share: median of certified / attack of each sample with an attack found.",
        ),
    ]
    if any(row.clever_above_attack is not None for row in rows):
        short = "CLEVER > attack, %"
        columns.append(
            percents(*(CHECK, above, short, lambda r: r.clever_above_attack, 1), key="clever-above")
        )
    if any(row.clever_fit_refused is not None for row in rows):
        short = "CLEVER misfit, %"
        columns.append(
            percents(
                *(CHECK, refused, short, lambda r: r.clever_fit_refused, 1),
                key="clever-misfit",
                note="CLEVER misfit: samples whose extreme-value fit is refused at 5 %.",
            )
        )
    return [*columns, VIOLATIONS, SAMPLES]


def _caption(results: Results, rows: list[Row]) -> str:
    """What the table shows, in which unit and convention, as plain text."""
    summary = results.summary
    counts = sorted({row.samples for row in rows})
    n = " to ".join(str(value) for value in {counts[0]: 0, counts[-1]: 0})
    words = (
        f"{radius_words(summary)}, within which a sample stays {wording.right_side(summary)}; "
        f"n = {n} {wording.population(summary)}, medians and means over all of them, with radius 0 "
        f"where the clean sample is already {wording.wrong_side(summary)} or nothing is proven."
    )
    made = threshold_words(results), training_words(results), seed_words(results)
    return " ".join(part for part in (words, *made) if part)
