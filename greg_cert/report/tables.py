"""The table as Markdown, as LaTeX (booktabs), and for a terminal."""

from __future__ import annotations

import re
from itertools import groupby

from rich.table import Table
from rich.text import Text

from greg_cert.report.columns import caption, table_columns
from greg_cert.report.comparison import Comparison, compare, comparison_line
from greg_cert.report.results import Results
from greg_cert.report.rows import Row, table_rows
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
}
_LONG_NAME = 20
_P_VALUE = re.compile(r"(?<=signed-rank )p (=|\\textless\{\}) (\d[\d.]*)(?:e([+-]\d+))?")


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


def markdown_table(
    results: Results, rows: list[Row], comparisons: list[Comparison], *, title: str = "Results"
) -> str:
    """The table in Markdown: caption, one row per run, and a line per comparison."""
    columns = table_columns(results.summary, rows)
    lines = [
        f"**{escape_markdown(title)}.** {escape_markdown(caption(results.summary, rows))}",
        "",
        "| Run | " + " | ".join(c.heading for c in columns) + " |",
        "| :-- |" + " --: |" * len(columns),
    ]
    for row in rows:
        cells = [escape_markdown(row.run), *(c.cell(row) for c in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {escape_markdown(comparison_line(c))}" for c in comparisons)]
    return "\n".join(lines).rstrip() + "\n"


def latex_table(results: Results, rows: list[Row], comparisons: list[Comparison]) -> str:
    """The table as a LaTeX float that needs no package but booktabs."""
    columns = table_columns(results.summary, rows)
    groups = [(status, len(list(group))) for status, group in groupby(columns, lambda c: c.status)]
    heads, rules, at = [], [], 2
    for status, width in groups:
        label = {"count": "", "measured": r"measured, \%"}.get(status, status)
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{label}}}")
        if status != "count":
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    long = any(len(one_line(row.run)) > _LONG_NAME for row in rows)
    first = r"p{0.16\linewidth}" if long else "l"
    body = []
    for row in rows:
        name = escape_tex(row.run)
        if long:  # let a long name break at its joints
            name = r"\raggedright " + re.sub(r"(\\_|[-/.+])", r"\1\\hspace{0pt}", name)
        body.append(" & ".join([name, *(escape_tex(c.cell(row)) for c in columns)]) + r" \\")
    lines = [
        r"% Needs \usepackage{booktabs}.",
        r"\begin{table*}[t]",
        r"\centering",
        r"\footnotesize" if long else r"\small",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_tex(caption(results.summary, rows))}}}",
        r"\label{tab:greg-cert}",
        rf"\begin{{tabular}}{{{first}{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *heads]) + r" \\",
        " ".join(rules),
        " & ".join(["run", *(escape_tex(c.short) for c in columns)]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    for number, comparison in enumerate(comparisons):
        space = r"\par\smallskip" if number == 0 else r"\par"
        line = _P_VALUE.sub(_tex_p_value, escape_tex(comparison_line(comparison)))
        lines.append(rf"{space}{{\footnotesize {line}}}")
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def summary_table(results: Results, *, seed: int = 0) -> Table:
    """The table for a terminal: a column per run, because that fits 80 characters; not printed."""
    rows = table_rows(results)
    table = Table(
        title=f"Certified against attacked radii, {results.samples} samples a run",
        caption="\n".join(
            [caption(results.summary, rows), *map(comparison_line, compare(results, seed=seed))]
        ),
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("status")
    for row in rows:
        table.add_column(Text(one_line(row.run), overflow="fold"), justify="right", overflow="fold")
    for status, group in groupby(
        table_columns(results.summary, rows), lambda column: column.status
    ):
        members = list(group)
        for column in members:
            table.add_row(
                Text(column.title),
                Text("" if status == "count" else status),
                *(Text(column.cell(row)) for row in rows),
                end_section=column is members[-1],
            )
    return table
