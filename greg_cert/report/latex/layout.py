"""How a table is set in LaTeX so that it fits the page: float, type, and blocks of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from greg_cert.report.latex.text import printed_width
from greg_cert.report.paper import POINTS, Paper
from greg_cert.report.tables.sheets import COUNT, MEASURED, Line, Sheet

# Size of type, space on both sides of a column, both in points; headings in two lines.
_TYPE = (
    *((9.0, 4.0, False), (9.0, 4.0, True), (9.0, 3.0, True)),
    *((8.0, 3.0, False), (8.0, 3.0, True), (8.0, 2.0, True)),
)
_LINES, _HEAD = 38, 5  # of type: in a float at most, and of them above the rows of a block
_NAMES = 0.22  # of the float's width, that a column of names takes at most


@dataclass(frozen=True)
class Layout:
    """One way to set a table; sizes in points."""

    sheet: Sheet
    environment: str
    float_width: float
    size: float  # of the type
    space: float  # on both sides of a column
    two_lines: bool  # for a heading that is wider than what is below it

    @cached_property
    def name_widths(self) -> tuple[float | None, ...]:
        """Width of each column of names that has to break; None of one that need not."""
        most = _NAMES * self.float_width
        return tuple(most if own > most else None for own in self._names)

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The columns by position, in as few blocks as fit the float, of about one width."""
        names = zip(self._names, self.name_widths, strict=True)
        room = self.float_width - sum((most or own) + 2 * self.space for own, most in names)
        fewest = self._packed(room)
        evener = (self._packed(tight) for tight in range(int(room / len(fewest)), int(room), 4))
        return next((found for found in evener if len(found) == len(fewest)), fewest)

    @property
    def parts(self) -> list[Sequence[Line]]:
        """The rows, dealt out to as many floats as they fill."""
        parts: list[list[Line]] = [[]]
        room = left = max(1, _LINES // len(self.blocks) - _HEAD)
        for line in self.sheet.lines:
            names = zip(line.names, self.name_widths, strict=True)
            high = max(math.ceil(1.2 * self._widest([n]) / w) if w else 1 for n, w in names)
            if parts[-1] and high > left:
                parts.append([])
                left = room
            parts[-1].append(line)
            left -= high
        return list(parts)

    def stacked(self, k: int) -> tuple[str, str]:
        """The heading of one column in two lines, the upper one empty where one is enough."""
        return self._stacked(self.sheet.heads[k].short, self._cells[k])

    def groups(self, columns: Sequence[int]) -> list[tuple[str, str, list[int]]]:
        """Runs of columns with one status: its two lines, where there is one, and the columns."""
        found = []
        for status, group in groupby(columns, lambda k: self.sheet.heads[k].status):
            members = list(group)
            label = {COUNT: "", MEASURED: f"{MEASURED}, %"}.get(status, status)
            found.append((*self._stacked(label, self._span(members) - 2 * self.space), members))
        return found

    @cached_property
    def _names(self) -> tuple[float, ...]:
        lines, stubs = self.sheet.lines, enumerate(self.sheet.stubs)
        return tuple(self._widest([stub, *(x.names[k] for x in lines)]) for k, stub in stubs)

    @cached_property
    def _cells(self) -> tuple[float, ...]:
        lines, heads = self.sheet.lines, self.sheet.heads
        return tuple(self._widest([line.cells[k] for line in lines]) for k in range(len(heads)))

    @cached_property
    def _columns(self) -> tuple[float, ...]:
        return tuple(max(own, self._widest(self.stacked(k))) for k, own in enumerate(self._cells))

    def _widest(self, texts: Sequence[str]) -> float:
        return max((printed_width(text, self.size) for text in texts), default=0.0)

    def _stacked(self, text: str, width: float) -> tuple[str, str]:
        words = text.split(" ")
        if not self.two_lines or len(words) == 1 or self._widest([text]) <= width:
            return "", text
        cuts = [(" ".join(words[:k]), " ".join(words[k:])) for k in range(1, len(words))]
        return min(cuts, key=self._widest)

    def _span(self, columns: Sequence[int]) -> float:
        return sum(self._columns[k] + 2 * self.space for k in columns)

    def _width(self, columns: Sequence[int]) -> float:
        """Of neighbouring columns, with what the headings above them need."""
        return sum(
            max(self._span(members), self._widest([upper, lower]) + 2 * self.space)
            for upper, lower, members in self.groups(columns)
        )

    def _packed(self, room: float) -> tuple[tuple[int, ...], ...]:
        """The columns dealt out from the left, each block as full as the room allows."""
        blocks: list[tuple[int, ...]] = [()]
        for k in range(len(self.sheet.heads)):
            if blocks[-1] and self._width((*blocks[-1], k)) > room:
                blocks.append(())
            blocks[-1] = (*blocks[-1], k)
        return tuple(blocks)


def fitting(sheet: Sheet, paper: Paper) -> Layout:
    """In one column where it fits whole, else over the page; with the fewest blocks there.

    Of several, the one with the largest type.
    """
    places = [("table", paper.column)]
    if paper.gap is not None:
        places.append(("table*", paper.text))
    layouts = [
        # The widths of text are not exact.
        Layout(sheet, environment, inches * POINTS - 1, size, space, two_lines)
        for environment, inches in places
        for size, space, two_lines in _TYPE
        if size >= paper.smallest
    ]
    last = layouts[-1].environment
    return min(
        (found for found in layouts if found.environment == last or len(found.blocks) == 1),
        key=lambda found: len(found.blocks),
    )
