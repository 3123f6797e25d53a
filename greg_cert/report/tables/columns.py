"""The columns that tables share, and what captions say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greg_cert.certificates.method_columns import OPTIONAL_METHODS
from greg_cert.certificates.methods import ESTIMATE, PROOF, UPPER
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.rows import SideRow
from greg_cert.report.tables.sheets import CHECK, COUNT, Column, R

VIOLATIONS = Column[SideRow](
    CHECK, "Violations", "viol.", lambda r: str(r.violations), lambda r: r.violations > 0
)
SAMPLES = Column[SideRow](COUNT, "n", "n", lambda r: str(r.samples))


def percents(
    status: str, title: str, short: str, pick: Callable[[R], float | None], digits: int = 2
) -> Column[R]:
    """A column of fractions, shown in per cent."""
    return Column(status, title, short, lambda row: wording.percent(pick(row), digits))


@dataclass(frozen=True)
class RadiusColumns:
    """Makes columns of radii in one norm and with one number of decimals."""

    norm: float
    digits: int
    max_radius: float | None  # up to where attacks searched

    def column(
        self, status: str, title: str, short: str, pick: Callable[[R], float | None]
    ) -> Column[R]:
        """One column; its title has a place for the norm."""
        return Column(
            status,
            title.format(wording.norm_name(self.norm)),
            short,
            lambda row: wording.radius(pick(row), self.digits, self.max_radius),
        )

    def certified(self) -> list[Column[SideRow]]:
        """Median and mean of the certified radii."""
        median, mean = "Certified {} radius, median", "Certified {} radius, mean"
        return [
            self.column(PROOF, median, "median", lambda r: r.certified_median),
            self.column(PROOF, mean, "mean", lambda r: r.certified_mean),
        ]

    def attack(self) -> Column[SideRow]:
        """Median of the attack radii."""
        return self.column(UPPER, "Attack {} radius, median", "attack", lambda r: r.attack_median)

    def methods(self, status: str, rows: Sequence[SideRow]) -> list[Column[SideRow]]:
        """Medians of the optional methods of one status; a dash where a record lacks one."""

        def of(column: str) -> Callable[[SideRow], float | None]:
            return lambda row: row.methods.get(column)

        return [
            self.column(status, f"{m.title} {{}} radius, median", m.title, of(m.column))
            for m in OPTIONAL_METHODS
            if m.status == status and any(m.column in row.methods for row in rows)
        ]


def radius_words(summary: Summary) -> str:
    """In which norm and unit radii are, for the beginning of a caption."""
    searched = "" if summary.max_radius is None else f", searched up to {summary.max_radius:g}"
    norm = wording.norm_name(summary.norm)
    return f"Radii in the {norm} norm of raw pixels in [0,1], {wording.ball(summary)}{searched}"


def method_words(rows: Sequence[SideRow]) -> str:
    """What the optional radii are, for the end of a caption; empty where there are none."""
    here = [m for m in OPTIONAL_METHODS if any(m.column in row.methods for row in rows)]
    words = ""
    if proofs := ", ".join(m.title for m in here if m.status == PROOF):
        words += (
            f" {proofs}: radii proven by that method alone; certified is the largest proof of "
            "those asked for."
        )
    if any(m.status == ESTIMATE for m in here):
        words += (
            " CLEVER: margin over the largest gradient that an extreme-value fit expects in the "
            "ball, an estimate without proof; medians over the samples that have one."
        )
    return words
