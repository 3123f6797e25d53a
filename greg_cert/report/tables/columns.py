"""The columns that tables share, and what captions say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greg_cert.certificates.method_columns import OPTIONAL_METHODS
from greg_cert.certificates.methods import PROOF, TABLE, UPPER, Method
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.tables.rows import SideRow
from greg_cert.report.tables.sheets import CHECK, COUNT, Column, R

VIOLATIONS = Column[SideRow](
    *(CHECK, "Violations", "viol.", lambda r: str(r.violations), lambda r: r.violations > 0),
    key="violations",
    note="Violations: certificates that an attack contradicts, expected 0.",
)
SAMPLES = Column[SideRow](COUNT, "n", "n", lambda r: str(r.samples), key="n")

SINGLE_METHODS = "Columns named by a method: radii proven by that method alone."


def percents(
    status: str,
    title: str,
    short: str,
    pick: Callable[[R], float | None],
    digits: int = 2,
    *,
    key: str,
    note: str = "",
) -> Column[R]:
    """A column of fractions, shown in per cent."""

    def cell(row: R) -> str:
        return wording.percent(pick(row), digits)

    return Column(status, title, short, cell, key=key, note=note)


@dataclass(frozen=True)
class RadiusColumns:
    """Makes columns of radii in one norm and with one number of decimals."""

    norm: float
    digits: int
    max_radius: float | None  # up to where attacks searched

    def column(
        self,
        status: str,
        title: str,
        short: str,
        pick: Callable[[R], float | None],
        *,
        key: str,
        note: str = "",
    ) -> Column[R]:
        """One column; its title has a place for the norm."""
        title = title.format(wording.norm_name(self.norm))

        def cell(row: R) -> str:
            return wording.radius(pick(row), self.digits, self.max_radius)

        return Column(status, title, short, cell, key=key, note=note)

    def certified(self, summary: Summary) -> list[Column[SideRow]]:
        """Median and mean of the certified radii."""
        median, mean = "Certified {} radius, median", "Certified {} radius, mean"
        note = certified_words(summary)
        picked = {
            "certified": (median, "median", lambda r: r.certified_median),
            "certified-mean": (mean, "mean", lambda r: r.certified_mean),
        }
        return [self.column(PROOF, *how, key=key, note=note) for key, how in picked.items()]

    def attack(self) -> Column[SideRow]:
        """Median of the attack radii."""
        return self.column(
            *(UPPER, "Attack {} radius, median", "attack", lambda r: r.attack_median),
            key="attack",
            note="Upper bound: the smallest perturbation that an attack found.",
        )

    def methods(self, status: str, rows: Sequence[SideRow]) -> list[Column[SideRow]]:
        """Medians of the optional methods of one status; a dash where a record lacks one."""

        def of(column: str) -> Callable[[SideRow], float | None]:
            return lambda row: row.methods.get(column)

        return [
            self.column(
                *(status, f"{m.title} {{}} radius, median", m.title, of(m.column)),
                key=m.name,
                note=_method_note(m),
            )
            for m in OPTIONAL_METHODS
            if m.status == status and any(m.column in row.methods for row in rows)
        ]


def radius_words(summary: Summary) -> str:
    """In which norm and unit radii are, for the beginning of a caption."""
    searched = "" if summary.max_radius is None else f", searched up to {summary.max_radius:g}"
    norm = wording.norm_name(summary.norm)
    return f"Radii in the {norm} norm of raw pixels in [0,1], {wording.ball(summary)}{searched}"


def certified_words(summary: Summary) -> str:
    """Which proofs the certified radius is the largest of."""
    proofs = [m.title for m in TABLE if m.status == PROOF and m.name in summary.methods]
    if not proofs:
        return "Certified: proven by bound propagation, or by a Lipschitz bound."
    if len(proofs) == 1:
        return f"Certified: proven by the method {proofs[0]}."
    return f"Certified: the largest radius that {', '.join(proofs[:-1])} or {proofs[-1]} proves."


def _method_note(method: Method) -> str:
    if method.status == PROOF:
        return SINGLE_METHODS
    return (
        "CLEVER: margin over the largest gradient that an extreme-value fit expects in the ball, "
        "an estimate without proof; medians over the samples that have one."
    )
