"""A table as plain text, ready to be written in any form: headings, rows, caption, remarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    """One column of a table.

    Attributes:
        status: what its numbers are: measured, proof, probabilistic proof, estimate, upper bound,
            lower bound, check or count.
        title: the column's full title, unit included.
        short: the title under a group heading that says `status` and, for what is measured, "%".
        cell: the text of the cell for a record.
        alarm: whether the cell of a record says that something is wrong.
    """

    status: str
    title: str
    short: str
    cell: Callable[[R], str]
    alarm: Callable[[R], bool] = lambda _: False


@dataclass(frozen=True)
class Head:
    """What stands above a column: status of its numbers, full title, short title."""

    status: str
    title: str
    short: str

    @property
    def heading(self) -> str:
        """Title and status, for a table with one row of headings."""
        return f"{self.title} ({self.status})"


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


def make_sheet(
    key: str,
    title: str,
    stubs: tuple[str, ...],
    columns: Sequence[Column[R]],
    records: Sequence[R],
    names: Callable[[R], tuple[str, ...]],
    *,
    caption: str,
    remarks: Sequence[str] = (),
) -> Sheet:
    """The table of some records: a row each, a cell a column."""
    lines = (
        Line(
            names(record),
            tuple(column.cell(record) for column in columns),
            frozenset(k for k, column in enumerate(columns) if column.alarm(record)),
        )
        for record in records
    )
    heads = (Head(c.status, c.title, c.short) for c in columns)
    return Sheet(key, title, stubs, tuple(heads), tuple(lines), caption, tuple(remarks))
