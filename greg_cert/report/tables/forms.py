"""The tables as Markdown, as LaTeX (booktabs), and for a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby, pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greg_cert.certificates.method_columns import OPTIONAL_METHODS
from greg_cert.certificates.results import Results
from greg_cert.report.names import check_names
from greg_cert.report.tables.comparison import Comparison, compare
from greg_cert.report.tables.notes import beside_every_table
from greg_cert.report.tables.ood_sheets import ood_sheets
from greg_cert.report.tables.runs_sheet import runs_sheet
from greg_cert.report.tables.sheets import COUNT, Line, Sheet
from greg_cert.report.tables.smoothing import smoothing_sheet
from greg_cert.report.wording import one_line


def escape_markdown(text: str) -> str:
    """Text with the characters escaped that would end a cell or start markup or HTML."""
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def all_sheets(
    results: Results, comparisons: list[Comparison], columns: Sequence[str] = ()
) -> list[Sheet]:
    """Every table of the report: the runs, the OOD side and the smoothed detector where asked.

    With `columns`, each has those of these names that it has, in this order, and one without any is
    left out, as are comparisons of radii that are not shown.

    Raises:
        UsageError: for a name that no column has.
    """
    comparisons = shown_comparisons(comparisons, columns)
    smoothed = smoothing_sheet(results)
    tables = [runs_sheet(results, comparisons), *ood_sheets(results, comparisons)]
    if smoothed is not None:
        tables.append(smoothed)
    return _with_columns(tables, columns) if columns else tables


def shown_comparisons(comparisons: list[Comparison], columns: Sequence[str]) -> list[Comparison]:
    """The comparisons but those of methods whose column was not asked for."""
    hidden = {f"{m.title} radii" for m in OPTIONAL_METHODS if columns and m.name not in columns}
    return [c for c in comparisons if c.quantity not in hidden]


_BESIDE = {"n", "violations"}  # columns of every table, which alone say nothing


def _with_columns(tables: list[Sheet], columns: Sequence[str]) -> list[Sheet]:
    known = dict.fromkeys(head.key for sheet in tables for head in sheet.heads)
    check_names("--table-columns", columns, list(known))
    wanted = {*columns} - _BESIDE or {*columns}
    return [
        sheet.only(list(dict.fromkeys(columns)))
        for sheet in tables
        if any(head.key in wanted for head in sheet.heads)
    ]


def markdown_table(
    results: Results,
    comparisons: list[Comparison],
    columns: Sequence[str] = (),
    *,
    title: str = "Results",
) -> str:
    """The tables in Markdown: notes, then caption, rows and remarks of each."""
    blocks = [f"> {escape_markdown(note)}" for note in beside_every_table(results)]
    first, *others = all_sheets(results, comparisons, columns)
    blocks += [markdown_sheet(first, title), *(markdown_sheet(s, s.title) for s in others)]
    return "\n\n".join(blocks) + "\n"


def markdown_sheet(sheet: Sheet, heading: str) -> str:
    """One table in Markdown: caption under a heading, rows, remarks."""
    names = " | ".join(one_line(stub).capitalize() for stub in sheet.stubs).replace("Ood", "OOD")
    lines = [
        f"| {names} | " + " | ".join(head.heading for head in sheet.heads) + " |",
        "|" + " :-- |" * len(sheet.stubs) + " --: |" * len(sheet.heads),
    ]
    for line in sheet.lines:
        cells = [*(escape_markdown(name) for name in line.names), *line.cells]
        lines.append("| " + " | ".join(cells) + " |")
    blocks = [f"**{escape_markdown(heading)}.** {escape_markdown(sheet.caption)}", "\n".join(lines)]
    if sheet.remarks:
        blocks.append("\n".join(f"- {escape_markdown(remark)}" for remark in sheet.remarks))
    return "\n\n".join(blocks)


_MOST_TABLES = 6  # of one kind that a terminal is given
_MOST_SIDE_BY_SIDE = 4  # runs that 80 characters hold


def summary_table(
    results: Results, columns: Sequence[str] = (), *, seed: int = 0
) -> RenderableType:
    """The tables for a terminal, turned on their side to fit 80 characters; not printed."""
    runs, *others = all_sheets(results, compare(results, seed=seed), columns)
    title = f"Certified against attacked radii, {results.samples} samples a run"
    tables: list[RenderableType] = [*_turned(runs, title)]
    for sheet in others:
        found = _turned(sheet, sheet.title)
        if len(found) > _MOST_TABLES:
            tables.append(Text(f"{sheet.title}: {len(found)} tables, in the report"))
        else:
            tables += found
    notes = beside_every_table(results)
    if len(tables) == 1 and not notes:
        return tables[0]
    return Group(*(Text(note, style="bold") for note in notes), *tables)


def _turned(sheet: Sheet, title: str) -> list[Table]:
    """A column for each last name of a row, and a table for each of what stands before it.

    Names that do not fit one table side by side are dealt out to several.
    """
    tables = []
    groups = [
        (names, lines)
        for names, group in groupby(sheet.lines, lambda line: line.names[:-1])
        for lines in _dealt(list(group))
    ]
    for names, lines in groups:
        heading = ", ".join([title, *map(one_line, names)])
        table = Table(title=Text(heading), caption_justify="left")
        table.add_column(Text(sheet.stubs[-1] if names else ""))
        table.add_column("status")
        for line in lines:
            name = Text(one_line(line.names[-1]), overflow="fold")
            table.add_column(name, justify="right", overflow="fold")
        for k, head in enumerate(sheet.heads):
            table.add_row(
                Text(head.title),
                Text("" if head.status == COUNT else head.status),
                *(Text(line.cells[k]) for line in lines),
                end_section=k + 1 == len(sheet.heads) or sheet.heads[k + 1].status != head.status,
            )
        tables.append(table)
    tables[-1].caption = Text("\n".join([sheet.caption, *sheet.remarks]))
    return tables


def _dealt(lines: list[Line]) -> list[list[Line]]:
    """The rows in parts of nearly the same size, of at most `_MOST_SIDE_BY_SIDE`."""
    parts = -(-len(lines) // _MOST_SIDE_BY_SIDE)
    ends = [len(lines) * k // parts for k in range(parts + 1)]
    return [lines[start:end] for start, end in pairwise(ends)]
