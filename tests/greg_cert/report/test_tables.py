import re

import pytest
from rich.console import Console

from greg_cert.report import load_results, summary_table
from greg_cert.report.latex.tables import latex_table
from greg_cert.report.latex.text import escape_tex
from greg_cert.report.tables.comparison import compare
from greg_cert.report.tables.forms import (
    _turned,
    escape_markdown,
    markdown_table,
)
from greg_cert.report.tables.sheets import Head, Line, Sheet


@pytest.fixture
def parts(small):
    results = load_results(small)
    return results, compare(results)


def test_markdown_has_a_row_a_run_and_the_status_of_every_number(parts):
    text = markdown_table(*parts)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({line.count("|") for line in rows}) == 1
    head = rows[0]
    for words in ("(proof)", "(estimate)", "(upper bound)", "95 % ID recall", "Violations"):
        assert words in head
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells == [
        *("a", "98.10", "1.23", "99.51", "0.100", "0.120", "0.050"),
        *("0.200", "0.400", "45.0", "0", "5"),
    ]
    for words in ("\u21132", "ball not clipped", "tpr = 0.95", "n = 5", "Wilcoxon", "b against a"):
        assert words in text


def test_latex_is_booktabs_with_matching_columns(parts):
    text = latex_table(*parts)
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"$\ell_2$", r"\caption"):
        assert word in text
    assert text.isascii()
    assert text.count("{") == text.count("}")
    body = re.search(r"\\midrule\n(.*)\\bottomrule", text, re.DOTALL)[1].strip().splitlines()
    assert len(body) == 2
    assert body[1].count(" & ") == 11
    assert r"98.10 & 1.23" in body[0]
    assert re.search(r"signed-rank \$p = 0\.\d+\$", text)


def test_escapes():
    assert escape_tex("a_b & 5% \u21132 \u2113∞ < \u2264") == (
        r"a\_b \& 5\% $\ell_2$ $\ell_\infty$ \textless{} $\le$"
    )
    assert escape_tex("two\nlines") == "two lines"
    assert escape_tex("m_in = 1, (λ_∇)") == r"$m_{\mathrm{in}}$ = 1, ($\lambda_\nabla$)"
    assert escape_tex("norm_in m_in_2") == r"norm\_in m\_in\_2"
    assert escape_markdown("a|b <script> *x*\n`y`") == r"a\|b &lt;script&gt; \*x\* \`y\`"


def test_power_of_ten_in_latex(made, tmp_path):
    frames = made.realistic(100)
    results = load_results(made.write(tmp_path / "x", frames, baseline="energy"))
    text = latex_table(results, compare(results, resamples=99))
    assert re.search(r"\$p = [\d.]+ \\times 10\^\{-\d+\}\$", text)


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_table_shows_every_number(small, width):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(summary_table(load_results(small)))
    text = " ".join(capture.get().split())
    for word in ("proof", "upper bound", "estimate", "98.10", "0.120", "45.0", "b against a"):
        assert word in text


def test_terminal_table_takes_names_as_they_are(made, tmp_path):
    results = load_results(made.write(tmp_path / "x", [made.frame_of("[red]x[/red]", [0], [1])]))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(results))
    assert "[red]x[/red]" in capture.get()


@pytest.mark.parametrize(("runs", "widths"), [(1, [1]), (4, [4]), (5, [2, 3]), (9, [3, 3, 3])])
def test_many_runs_are_dealt_out_to_several_tables(runs, widths):
    lines = [Line((f"run {k}",), (str(k),)) for k in range(runs)]
    sheet = Sheet("k", "T", ("run",), (Head("count", "n", "n"),), tuple(lines), "all of them")
    tables = _turned(sheet, "T")
    assert [len(t.columns) - 2 for t in tables] == widths
    shown = [cell for t in tables for c in t.columns[2:] for cell in c.cells]
    assert [str(cell) for cell in shown] == [str(k) for k in range(runs)]
    assert [t.caption is None for t in tables] == [True] * (len(tables) - 1) + [False]
