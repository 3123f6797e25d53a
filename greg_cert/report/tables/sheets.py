"""A table as plain text, ready to be written in any form: headings, rows, caption, remarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

MEASURED, LOWER, CHECK, COUNT = "measured", "lower bound", "check", "count"
"""What the numbers of a column are, beside the statuses of `greg_cert.certificates`."""

R = TypeVar("R", contravariant=True)


@dataclass(frozen=True)
class Head:
    """What stands above a column.

    Attributes:
        status: what its numbers are.
        title: the column's full title, unit included.
        short: the title under a group heading that says `status` and, for what is measured, "%".
    """

    status: str
    title: str
    short: str

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
    """One table.

    Attributes:
        key: a short name, for the label in LaTeX.
        title: its heading.
        stubs: titles of the columns that name a row.
        heads: headings of the other columns.
        lines: the rows.
        caption: what it shows, in which unit and convention, as plain text.
        remarks: lines of text below it.
    """

    key: str
    title: str
    stubs: tuple[str, ...]
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    caption: str
    remarks: tuple[str, ...] = ()

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
    heads = (Head(c.status, c.title, c.short) for c in columns)
    return Sheet(key, title, tuple(names), tuple(heads), tuple(lines), caption, tuple(remarks))
