"""The tables as Markdown, as LaTeX (booktabs), and for a terminal."""

from __future__ import annotations

import re
from itertools import groupby, pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greg_cert.certificates.results import Results
from greg_cert.report.tables.comparison import Comparison, compare
from greg_cert.report.tables.notes import beside_every_table
from greg_cert.report.tables.ood_sheets import ood_sheets
from greg_cert.report.tables.runs_sheet import runs_sheet
from greg_cert.report.tables.sheets import COUNT, MEASURED, Line, Sheet
from greg_cert.report.tables.smoothing import smoothing_sheet
from greg_cert.report.wording import one_line

_TEX = {
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "{}$&#%_"},
    "[": "{[}",  # after a line break, a bare bracket would be its argument
    "]": "{]}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2013": "--",
    "…": r"\dots{}",
    "≤": r"$\le$",
    "∞": r"$\infty$",
    "∇": r"$\nabla$",
    "\u03b1": r"$\alpha$",
    "β": r"$\beta$",
    "\u03b3": r"$\gamma$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "\u03c3": r"$\sigma$",
    "\u201c": "``",
    "\u201d": "''",
    "\u2019": "'",
    "\u2014": "---",
    "≥": r"$\ge$",
    "\u00d7": r"$\times$",
    "\u2016": r"$\Vert$",
    "±": r"$\pm$",
}
BOOKTABS = "% Needs \\usepackage{booktabs}.\n"
_LONG_NAME = 20
_MANY_COLUMNS = 12
_P_VALUE = re.compile(r"\bp (=|\\textless\{\}) (\d[\d.]*)(?:e([+-]\d+))?")


def _tex_p_value(match: re.Match[str]) -> str:
    sign = "=" if match[1] == "=" else "<"
    power = rf" \times 10^{{{int(match[3])}}}" if match[3] else ""
    return f"$p {sign} {match[2]}{power}$"


def escape_tex(text: str) -> str:
    r"""Text with every character that LaTeX treats specially written so that it prints itself."""
    text = re.sub("\u2113([12∞])", lambda m: f"\0{m[1]}", one_line(text).replace("\0", " "))
    text = "".join(_TEX.get(c, c) for c in text)
    text = text.replace("\0$\\infty$", r"$\ell_\infty$")
    return re.sub("\0([12])", r"$\\ell_\1$", text)


def escape_markdown(text: str) -> str:
    """Text with the characters escaped that would end a cell or start markup or HTML."""
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def all_sheets(results: Results, comparisons: list[Comparison]) -> list[Sheet]:
    """Every table of the report: the runs, the OOD side and the smoothed detector where asked."""
    smoothed = smoothing_sheet(results)
    tables = [runs_sheet(results, comparisons), *ood_sheets(results, comparisons)]
    return tables if smoothed is None else [*tables, smoothed]


def markdown_table(
    results: Results, comparisons: list[Comparison], *, title: str = "Results"
) -> str:
    """The tables in Markdown: notes, then caption, rows and remarks of each."""
    blocks = [f"> {escape_markdown(note)}" for note in beside_every_table(results)]
    first, *others = all_sheets(results, comparisons)
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


def latex_table(results: Results, comparisons: list[Comparison]) -> str:
    """The tables as LaTeX floats that need no package but booktabs."""
    notes = " ".join(beside_every_table(results))
    first, *others = all_sheets(results, comparisons)
    floats = [latex_sheet(first, first.caption, notes)]
    floats += [latex_sheet(sheet, f"{sheet.title}. {sheet.caption}", notes) for sheet in others]
    return BOOKTABS + "\n".join(floats)


def latex_sheet(sheet: Sheet, caption: str, notes: str = "") -> str:
    """One table as a LaTeX float that needs booktabs alone."""
    stubs = len(sheet.stubs)
    heads, rules, at = [], [], stubs + 1
    for status, width in sheet.groups:
        label = {COUNT: "", MEASURED: rf"{MEASURED}, \%"}.get(status, status)
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{label}}}")
        if status != COUNT:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    long = [
        any(len(one_line(line.names[k])) > _LONG_NAME for line in sheet.lines) for k in range(stubs)
    ]
    first = "".join(r"p{0.16\linewidth}" if wide else "l" for wide in long)
    body = []
    for line in sheet.lines:
        names = [
            # Let a long name break at its joints.
            r"\raggedright " + re.sub(r"(\\_|[-/.+])", r"\1\\hspace{0pt}", escape_tex(name))
            if wide
            else escape_tex(name)
            for name, wide in zip(line.names, long, strict=True)
        ]
        body.append(" & ".join([*names, *(escape_tex(cell) for cell in line.cells)]) + r" \\")
    wide_table = len(sheet.heads) > _MANY_COLUMNS
    size = r"\scriptsize" if wide_table else r"\footnotesize" if any(long) else r"\small"
    caption = " ".join(part for part in (caption, notes) if part)
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        size,
        rf"\setlength{{\tabcolsep}}{{{2 if wide_table else 3}pt}}",
        rf"\caption{{{escape_tex(caption)}}}",
        rf"\label{{tab:{sheet.key}}}",
        rf"\begin{{tabular}}{{{first}{'r' * len(sheet.heads)}}}",
        r"\toprule",
        " & ".join([*([""] * stubs), *heads]) + r" \\",
        " ".join(rules),
        " & ".join(escape_tex(t) for t in (*sheet.stubs, *(h.short for h in sheet.heads))) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    for number, remark in enumerate(sheet.remarks):
        space = r"\par\smallskip" if number == 0 else r"\par"
        text = _P_VALUE.sub(_tex_p_value, escape_tex(remark))
        lines.append(rf"{space}{{\footnotesize {text}}}")
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


_MOST_TABLES = 6  # of one kind that a terminal is given
_MOST_SIDE_BY_SIDE = 4  # runs that 80 characters hold


def summary_table(results: Results, *, seed: int = 0) -> RenderableType:
    """The tables for a terminal, turned on their side to fit 80 characters; not printed."""
    runs, *others = all_sheets(results, compare(results, seed=seed))
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
