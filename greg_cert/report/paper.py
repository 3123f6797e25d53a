"""The page that tables are printed on: how wide they may be, and how small their type."""

from __future__ import annotations

from dataclasses import dataclass

POINTS = 72.27  # TeX points in an inch


@dataclass(frozen=True)
class Paper:
    """The widths of one layout, in inches, and the smallest type of its tables."""

    text: float = 6.75
    gap: float | None = 0.25  # between two columns; None where the page has one
    smallest: float = 8.0  # points, of the type of tables

    @property
    def column(self) -> float:
        """Width of one column in inches."""
        return self.text if self.gap is None else (self.text - self.gap) / 2


ANY_PAPER = Paper()
"""Where no venue is named: two columns, as many proceedings have them."""
