"""The columns of the table of runs and its caption, once for all the forms of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greg_cert.certificates.method_columns import OPTIONAL_METHODS
from greg_cert.certificates.methods import PROOF, Method
from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.comparison import Comparison, comparison_lines
from greg_cert.report.tables.rows import Row
from greg_cert.report.tables.sheets import Column, R, Sheet, make_sheet


def runs_sheet(results: Results, rows: list[Row], comparisons: list[Comparison]) -> Sheet:
    """The table of runs: one row a run, and a line a comparison with the baseline."""
    return make_sheet(
        "greg-cert",
        "Runs",
        ("run",),
        table_columns(results.summary, rows),
        rows,
        lambda row: (row.run,),
        caption=caption(results.summary, rows),
        remarks=[
            *ladder_lines(results.summary),
            *(
                line
                for chosen in (
                    [c for c in comparisons if c.main],
                    [c for c in comparisons if c.dataset is None and not c.main],
                )
                for line in comparison_lines(chosen)
            ),
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


def table_columns(summary: Summary, rows: list[Row]) -> list[Column[Row]]:
    """The columns after the run's name, grouped by the status of their numbers."""
    digits = wording.radius_digits(
        [
            value
            for r in rows
            for value in (
                r.certified_median,
                r.certified_mean,
                r.attack_median,
                *r.methods.values(),
            )
        ]
    )
    norm = wording.norm_name(summary.norm)
    fpr = wording.fpr_name(summary)

    def radius(pick: Callable[[Row], float]) -> Callable[[Row], str]:
        return lambda row: wording.radius(pick(row), digits, summary.max_radius)

    def percent(pick: Callable[[Row], float | None], places: int = 2) -> Callable[[Row], str]:
        return lambda row: wording.percent(pick(row), places)

    def more(status: str) -> list[Column[Row]]:
        methods = [m for m in OPTIONAL_METHODS if any(m.column in row.methods for row in rows)]
        return method_columns(methods, status, summary, digits, lambda row: row.methods)

    recall = f"{100 * summary.tpr:g} % ID recall"
    columns = [
        Column("measured", "ID accuracy, %", "ID acc.", percent(lambda r: r.id_accuracy)),
        Column("measured", f"{fpr} at {recall}, %", fpr, percent(lambda r: r.fpr)),
        Column("measured", "AUROC, %", "AUROC", percent(lambda r: r.auroc)),
        Column(
            "proof",
            f"Certified {norm} radius, median",
            "median",
            radius(lambda r: r.certified_median),
        ),
        Column(
            "proof", f"Certified {norm} radius, mean", "mean", radius(lambda r: r.certified_mean)
        ),
        Column(
            "proof",
            f"Lipschitz {norm} radius, median",
            "Lipschitz",
            radius(lambda r: r.lipschitz_median),
        ),
        *more("proof"),
        Column(
            "estimate",
            f"First-order {norm} radius, median",
            "1st order",
            radius(lambda r: r.gradient_median),
        ),
        *more("estimate"),
        Column(
            "upper bound",
            f"Attack {norm} radius, median",
            "attack",
            radius(lambda r: r.attack_median),
        ),
        Column("check", "Certified / attack, median %", "share, %", percent(lambda r: r.share, 1)),
    ]
    if any(row.clever_above_attack is not None for row in rows):
        columns.append(
            Column(
                "check",
                "CLEVER above attack, %",
                "CLEVER > attack, %",
                percent(lambda r: r.clever_above_attack, 1),
            )
        )
    if any(row.clever_fit_refused is not None for row in rows):
        columns.append(
            Column(
                "check",
                "CLEVER fit refused at 5 %, %",
                "CLEVER misfit, %",
                percent(lambda r: r.clever_fit_refused, 1),
            )
        )
    return [
        *columns,
        Column(
            "check", "Violations", "viol.", lambda r: str(r.violations), lambda r: r.violations > 0
        ),
        Column("count", "n", "n", lambda r: str(r.samples)),
    ]


def method_columns(
    methods: Sequence[Method],
    status: str,
    summary: Summary,
    digits: int,
    pick: Callable[[R], dict[str, float]],
) -> list[Column[R]]:
    """Median radii of the optional methods of one status; a dash where a record lacks one."""

    def cell(column: str) -> Callable[[R], str]:
        return lambda record: wording.radius(pick(record).get(column), digits, summary.max_radius)

    norm = wording.norm_name(summary.norm)
    return [
        Column(status, f"{m.title} {norm} radius, median", m.title, cell(m.column))
        for m in methods
        if m.status == status
    ]


def method_words(columns: set[str]) -> str:
    """What the optional radii are, for a caption; empty where there are none."""
    here = [m for m in OPTIONAL_METHODS if m.column in columns]
    proofs = [m.title for m in here if m.status == PROOF]
    words = ""
    if proofs:
        words += (
            f" {', '.join(proofs)}: radii proven by that method alone; certified is the largest "
            "proof of those asked for."
        )
    if any(m.status == "estimate" for m in here):
        words += (
            " CLEVER: margin over the largest gradient that an extreme-value fit expects in the "
            "ball, an estimate without proof; medians over the samples that have one."
        )
    return words


def caption(summary: Summary, rows: list[Row]) -> str:
    """What the table shows, in which unit and convention, as plain text."""
    norm = wording.norm_name(summary.norm)
    tpr = f"{100 * summary.tpr:g} %"
    counts = sorted({row.samples for row in rows})
    n = " to ".join(str(value) for value in {counts[0]: 0, counts[-1]: 0})
    searched = "" if summary.max_radius is None else f", searched up to {summary.max_radius:g}"
    return (
        f"Radii in the {norm} norm of raw pixels in [0,1], {wording.ball(summary)}{searched}; "
        f"n = {n} {wording.population(summary)}, medians and means over all of them, with radius 0 "
        f"where the clean sample is already {wording.wrong_side(summary)} or nothing is proven. "
        f"The threshold accepts {tpr} of the ID calibration split (tpr = {summary.tpr:g}); "
        f"{wording.fpr_name(summary)} is the share of OOD samples accepted at {tpr} ID recall. "
        "Proof: certified by bound propagation, or by a Lipschitz bound. Upper bound: the smallest "
        "perturbation that an attack found. Estimate: margin over gradient norm at the sample, no "
        "proof. Certified / attack: median of the per-sample ratio, over samples with an attack "
        "found. Violations: certificates that an attack contradicts, expected 0."
    ) + method_words({column for row in rows for column in row.methods})
