"""A table as plain text, ready to be written in any form: headings, rows, caption, remarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Generic, TypeVar

MEASURED, LOWER, CHECK, COUNT = "measured", "lower bound", "check", "count"
"""What the numbers of a column are, beside the statuses of `greg_cert.certificates`."""

R = TypeVar("R", contravariant=True)


@dataclass(frozen=True)
class Head:
    """What stands above a column: what its numbers are, and its title with the unit.

    `short` stands under a group heading that says `status` and, for what is measured, "%". `key` is
    how users name the column, `note` what the caption says where it is shown.
    """

    status: str
    title: str
    short: str
    key: str = field(default="", kw_only=True)
    note: str = field(default="", kw_only=True)

    @property
    def heading(self) -> str:
        """Title and status, for a table with one row of headings."""
        return f"{self.title} ({self.status})"


@dataclass(frozen=True)
class Column(Head, Generic[R]):
    """One column: its head, the text of its cell for a record, and whether that is an alarm."""

    cell: Callable[[R], str]
    alarm: Callable[[R], bool] = lambda _: False


@dataclass(frozen=True)
class Line:
    """One row: the names it goes by, its cells, and the positions of cells that raise an alarm."""

    names: tuple[str, ...]
    cells: tuple[str, ...]
    alarms: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Sheet:
    """One table."""

    key: str  # for the label in LaTeX
    title: str
    stubs: tuple[str, ...]  # titles of the columns that name a row
    heads: tuple[Head, ...]  # of the other columns
    lines: tuple[Line, ...]
    about: str  # what it shows, in which unit and convention
    remarks: tuple[str, ...] = ()  # lines of text below it

    @property
    def caption(self) -> str:
        """What the table is about, and of its columns."""
        return " ".join(
            dict.fromkeys(text for text in (self.about, *(h.note for h in self.heads)) if text)
        )

    def only(self, keys: Sequence[str]) -> Sheet:
        """The table with the columns of these keys that it has, in this order."""
        at = [k for key in keys for k, head in enumerate(self.heads) if head.key == key]
        lines = (
            Line(
                line.names,
                tuple(line.cells[k] for k in at),
                frozenset(place for place, k in enumerate(at) if k in line.alarms),
            )
            for line in self.lines
        )
        return replace(self, heads=tuple(self.heads[k] for k in at), lines=tuple(lines))

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Status and number of each run of neighbouring columns with one status."""
        return [(status, len(list(g))) for status, g in groupby(self.heads, lambda h: h.status)]


def make_sheet(
    key: str,
    title: str,
    names: Mapping[str, Callable[[R], str]],
    columns: Sequence[Column[R]],
    records: Sequence[R],
    *,
    caption: str,
    remarks: Sequence[str] = (),
) -> Sheet:
    """The table of some records: a row each, a cell a column; `names` are what a row goes by."""
    lines = (
        Line(
            tuple(name(record) for name in names.values()),
            tuple(column.cell(record) for column in columns),
            frozenset(k for k, column in enumerate(columns) if column.alarm(record)),
        )
        for record in records
    )
    heads = (Head(c.status, c.title, c.short, key=c.key, note=c.note) for c in columns)
    return Sheet(key, title, tuple(names), tuple(heads), tuple(lines), caption, tuple(remarks))
