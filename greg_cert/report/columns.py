"""The columns of the table and its caption, once for all the forms of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from greg_cert.report import wording
from greg_cert.report.rows import Row
from greg_cert.report.summary_file import Summary


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        status: what its numbers are: measured, proof, estimate, upper bound, check or count.
        title: the column's full title, unit included.
        short: the title under a group heading that says `status` and, for what is measured, "%".
        cell: the text of the cell for a run.
    """

    status: str
    title: str
    short: str
    cell: Callable[[Row], str]

    @property
    def heading(self) -> str:
        """Title and status, for a table with one row of headings."""
        return f"{self.title} ({self.status})"


def table_columns(summary: Summary, rows: list[Row]) -> list[Column]:
    """The columns after the run's name, grouped by the status of their numbers."""
    digits = wording.radius_digits(
        [value for r in rows for value in (r.certified_median, r.certified_mean, r.attack_median)]
    )
    norm = wording.norm_name(summary.norm)
    fpr = wording.fpr_name(summary)

    def radius(pick: Callable[[Row], float]) -> Callable[[Row], str]:
        return lambda row: wording.radius(pick(row), digits, summary.max_radius)

    def percent(pick: Callable[[Row], float | None], places: int = 2) -> Callable[[Row], str]:
        return lambda row: wording.percent(pick(row), places)

    recall = f"{100 * summary.tpr:g} % ID recall"
    return [
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
        Column(
            "estimate",
            f"First-order {norm} radius, median",
            "1st order",
            radius(lambda r: r.gradient_median),
        ),
        Column(
            "upper bound",
            f"Attack {norm} radius, median",
            "attack",
            radius(lambda r: r.attack_median),
        ),
        Column("check", "Certified / attack, median %", "share, %", percent(lambda r: r.share, 1)),
        Column("check", "Violations", "viol.", lambda r: str(r.violations)),
        Column("count", "n", "n", lambda r: str(r.samples)),
    ]


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
    )
