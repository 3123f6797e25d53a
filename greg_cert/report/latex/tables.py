"""The tables as LaTeX floats (booktabs), laid out so that they fit the page they are made for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from greg_cert.certificates.results import Results
from greg_cert.report.latex.layout import Layout, fitting
from greg_cert.report.latex.text import escape_tex, printed_width
from greg_cert.report.paper import ANY_PAPER, Paper
from greg_cert.report.tables.comparison import Comparison
from greg_cert.report.tables.comparison_sheet import comparison_sheet
from greg_cert.report.tables.forms import all_sheets, shown_comparisons
from greg_cert.report.tables.notes import beside_every_table
from greg_cert.report.tables.sheets import Line, Sheet
from greg_cert.report.wording import one_line

_IN_LINES = 3  # comparisons that stand in words below the table of runs
BOOKTABS = "% Needs \\usepackage{booktabs}.\n"
_POWER = re.compile(r"(\d[\d.]*)e([+-]\d+)")
_P_VALUE = re.compile(r"\bp (=|\\textless\{\}) (\d[\d.]*)(?:e([+-]\d+))?")


def latex_table(
    results: Results,
    comparisons: list[Comparison],
    paper: Paper = ANY_PAPER,
    columns: Sequence[str] = (),
) -> str:
    """The tables as LaTeX floats that need no package but booktabs, and fit the paper."""
    notes = " ".join(beside_every_table(results))
    return latex_floats(latex_sheets(results, comparisons, columns), notes, paper)


def latex_sheets(
    results: Results, comparisons: list[Comparison], columns: Sequence[str] = ()
) -> list[Sheet]:
    """The tables of a paper: more than a few comparisons are one too, else lines below the runs."""
    shown = shown_comparisons(comparisons, columns)
    if len(shown) <= _IN_LINES:
        return all_sheets(results, comparisons, columns)
    return [*all_sheets(results, [], columns), comparison_sheet(shown)]


def latex_floats(sheets: Sequence[Sheet], notes: str, paper: Paper = ANY_PAPER) -> str:
    """The tables as floats, with notes that stand in every caption."""
    first, *others = sheets
    floats = [latex_sheet(first, first.caption, notes, paper)]
    floats += [latex_sheet(s, f"{s.title}. {s.caption}", notes, paper) for s in others]
    return BOOKTABS + "\n".join(floats)


def latex_sheet(sheet: Sheet, caption: str, notes: str = "", paper: Paper = ANY_PAPER) -> str:
    """One table as LaTeX floats: in one column where it fits, else over the page.

    One that is too wide for the page is set as several blocks below one another, each with the
    names of its rows; one that is too long is continued in another float.
    """
    layout = fitting(sheet, paper)
    text = escape_tex(" ".join(part for part in (caption, notes) if part))
    first = [rf"\caption{{{text}}}", rf"\label{{tab:{sheet.key}}}"]
    again = [r"\addtocounter{table}{-1}", r"\caption{(continued)}"]
    parts = layout.parts
    return "\n".join(
        _float(
            *(layout, again if number else first, rows),
            remarks=sheet.remarks if number == len(parts) - 1 else (),
        )
        for number, rows in enumerate(parts)
    )


def _float(
    layout: Layout, caption: Sequence[str], rows: Sequence[Line], remarks: Sequence[str]
) -> str:
    lines = [
        rf"\begin{{{layout.environment}}}[t]",
        r"\centering\sloppy",
        *caption,
        rf"\fontsize{{{layout.size:g}}}{{{1.2 * layout.size:g}}}\selectfont",
        rf"\setlength{{\tabcolsep}}{{{layout.space:g}pt}}",
        "\n\\par\\medskip\n".join(_block(layout, columns, rows) for columns in layout.blocks),
    ]
    for number, remark in enumerate(remarks):
        space = r"\par\smallskip" if number == 0 else r"\par"
        text = _P_VALUE.sub(_tex_p_value, escape_tex(remark))
        lines.append(rf"{space}{{\footnotesize {text}}}")
    return "\n".join([*lines, rf"\end{{{layout.environment}}}"]) + "\n"


def _tex_p_value(match: re.Match[str]) -> str:
    sign = "=" if match[1] == "=" else "<"
    power = rf" \times 10^{{{int(match[3])}}}" if match[3] else ""
    return f"$p {sign} {match[2]}{power}$"


def _block(layout: Layout, columns: Sequence[int], rows: Sequence[Line]) -> str:
    """One block of columns as a `tabular`, with the names of its rows."""
    sheet = layout.sheet
    groups = layout.groups(columns)
    stubs = [("", escape_tex(stub)) for stub in sheet.stubs]
    heads = [*stubs, *(tuple(map(escape_tex, layout.stacked(k))) for k in columns)]
    rules, at = [], len(stubs) + 1
    for _, label, members in groups:
        if label:
            rules.append(rf"\cmidrule(lr){{{at}-{at + len(members) - 1}}}")
        at += len(members)
    upper, lower = (
        [""] * len(stubs)
        + [
            rf"\multicolumn{{{len(members)}}}{{c}}{{{escape_tex(words[k])}}}"
            for *words, members in groups
        ]
        for k in (0, 1)
    )
    kinds = "".join("l" if w is None else f"p{{{w:.1f}pt}}" for w in layout.name_widths)
    lines = [
        rf"\begin{{tabular}}{{{kinds}{'r' * len(columns)}}}",
        r"\toprule",
        *([_row(upper)] if any(g[0] for g in groups) else []),
        _row(lower),
        " ".join(rules),
        *([_row([head[0] for head in heads])] if any(head[0] for head in heads) else []),
        _row([head[1] for head in heads]),
        r"\midrule",
    ]
    for line in rows:
        names = [
            escape_tex(name) if width is None else _narrow(name, width, layout.size)
            for name, width in zip(line.names, layout.name_widths, strict=True)
        ]
        lines.append(_row([*names, *(_cell(line.cells[k]) for k in columns)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _cell(text: str) -> str:
    """A number, a power of ten as such."""
    return _POWER.sub(lambda m: rf"${m[1]} \times 10^{{{int(m[2])}}}$", escape_tex(text))


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _narrow(name: str, width: float, size: float) -> str:
    """A name that may break wherever it has to in so many points."""
    name = one_line(name)
    fit = int(width * len(name) / max(printed_width(name, size), width))
    return r"\raggedright " + escape_tex(name, max(2, fit - 1))
