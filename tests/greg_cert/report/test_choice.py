"""Rows and columns that a user chose: what is shown, in which order, and what stays said."""

import re

import pytest
from typer.testing import CliRunner

from greg_cert.cli import app
from greg_cert.errors import UsageError
from greg_cert.report import FigureStyle, load_results, write_figures, write_report
from greg_cert.report.latex.tables import latex_table
from greg_cert.report.tables.comparison import compare, comparison_lines
from greg_cert.report.tables.forms import all_sheets, markdown_table
from greg_cert.report.tables.notes import beside_every_table, warning
from greg_cert.report.tables.statement import statement
from greg_cert.report.write import chosen_runs

STYLE = FigureStyle(dpi=60)


@pytest.fixture
def folder(made, tmp_path):
    """Three runs with an OOD set each; an attack contradicts one proof of the last."""
    frames = [
        made.with_methods(f, ("crown", "branch")) for f in made.realistic(30, ("a", "b", "c"))
    ]
    frames[2].loc[0, ["radius_certified", "radius_branch", "radius_attack", "status"]] = [
        *(0.3, 0.3, 0.2, "certified"),
    ]
    frames[2].loc[0, "violation"] = True
    path = made.write(tmp_path / "v", frames, baseline="a", methods=["crown", "branch"])
    radii = ["radius_certified", "radius_attack"]
    ood = [made.ood_of(n, "x", *(f[r] for r in radii)) for n, f in zip("abc", frames, strict=True)]
    return made.write_ood(path, ood)


def test_runs_come_in_the_order_of_their_names(folder):
    results = load_results(folder)
    shown = chosen_runs(results, ["b,a"])
    assert shown.runs == ("b", "a")
    assert list(shown.frame["run"].unique()) == ["b", "a"]
    assert shown.samples == results.samples
    for sheet in all_sheets(shown, []):
        assert list(dict.fromkeys(line.names[0] for line in sheet.lines)) == ["b", "a"]
    assert chosen_runs(results, []) is results
    assert chosen_runs(results, ["c", "c"]).runs == ("c",)


def test_a_name_with_a_comma_is_one_name(made, tmp_path):
    frames = made.realistic(10, ("a, b", "a"))
    results = load_results(made.write(tmp_path / "v", frames))
    assert chosen_runs(results, ["a, b"]).runs == ("a, b",)


def test_leaving_runs_out_changes_no_test_and_hides_no_broken_proof(folder):
    results = load_results(folder)
    every = {c.run: c for c in compare(results, resamples=99) if c.main}
    shown = chosen_runs(results, ["b", "a"])
    (main,) = (c for c in compare(shown, resamples=99) if c.main)
    assert main == every["b"]
    assert (main.family, main.holm) == (2, every["b"].holm)
    assert "over 2 tests" in comparison_lines([main])[0]
    assert warning(shown) == warning(results) != ""
    notes = beside_every_table(shown)
    assert "\u201cc\u201d: 1 of 30" in notes[0]
    assert "Shown are 2 of the 3 runs that were verified." in notes


def test_a_baseline_that_is_not_shown_is_not_compared_with(folder):
    shown = chosen_runs(load_results(folder), ["c", "b"])
    assert compare(shown) == []
    notes = beside_every_table(shown)
    assert "Shown are 2 of the 3 runs that were verified, without the baseline a." in notes
    assert "no baseline to compare with here" in statement(shown, [])


def test_columns_come_in_the_order_of_their_names(folder):
    results = load_results(folder)
    names = ["attack", "certified", "accuracy", "attack", "fpr-certified"]
    runs, ood, balls = all_sheets(results, [], names)
    assert [head.key for head in runs.heads] == ["attack", "certified", "accuracy"]
    assert [head.key for head in ood.heads] == ["attack", "certified"]
    assert [head.key for head in balls.heads] == ["fpr-certified"]
    full = all_sheets(results, [])[0]
    for line, whole in zip(runs.lines, full.lines, strict=True):
        at = [[head.key for head in full.heads].index(head.key) for head in runs.heads]
        assert line.cells == tuple(whole.cells[k] for k in at)
    # A table that would have the number of samples alone is left out, as are alarms elsewhere.
    (only,) = all_sheets(results, [], ["auroc", "violations", "n"])
    assert only.key == "greg-cert"
    assert [line.alarms for line in only.lines] == [frozenset(), frozenset(), frozenset({1})]
    assert len(all_sheets(results, [], ["n"])) == 3


def test_every_column_has_a_name_of_its_own_in_its_table(folder):
    for sheet in all_sheets(load_results(folder), []):
        keys = [head.key for head in sheet.heads]
        assert len(set(keys)) == len(keys)
        assert all(re.fullmatch(r"[a-z][a-z-]*", key) for key in keys)


def test_captions_say_what_is_shown_and_no_more(folder):
    sheet = all_sheets(load_results(folder), [])[0]
    assert "First order" in sheet.caption
    assert sheet.caption.count("Certified: the largest radius that CROWN or Branched proves.") == 1
    few = sheet.only(["certified"]).caption
    assert "Certified: the largest radius" in few
    assert "First order" not in few
    assert "FPR95" not in few
    assert "expected 0" not in few


def test_comparisons_of_a_column_that_is_not_shown_are_not_shown(folder):
    results = load_results(folder)
    comparisons = compare(results, resamples=99)
    assert "median CROWN radii" in markdown_table(results, comparisons)
    text = markdown_table(results, comparisons, ["certified"])
    assert "median certified radii" in text
    assert "median CROWN radii" not in text
    assert "& CROWN &" in latex_table(results, comparisons)
    assert "CROWN &" not in latex_table(results, comparisons, columns=["certified"])


def test_unknown_names_are_refused_with_the_nearest_before_anything_is_written(folder, tmp_path):
    out = tmp_path / "out"
    for more, words in (
        ({"rows": ["aa"]}, "--rows: expected one of a, b, c, but got 'aa'; did you mean 'a'?"),
        ({"columns": ["sertified"]}, "but got 'sertified'; did you mean 'certified'?"),
    ):
        with pytest.raises(UsageError) as error:
            write_report(folder, out, style=STYLE, **more)
        assert words in str(error.value)
    with pytest.raises(UsageError, match="did you mean 'bracket'"):
        write_figures(folder, out, only=["brackets"], style=STYLE)
    assert not out.exists()


def test_the_command_takes_rows_columns_and_attack_radii(folder, tmp_path, one_figure):
    command = ["report", str(folder), "--out", str(tmp_path / "r"), "--dpi", "60"]
    choice = ["--rows", "c", "--rows", "b", "--table-columns", "attack, certified"]
    done = CliRunner().invoke(app, [*command, *choice, "--venue", "neurips", "--attack-radii"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "r" / "table.tex").read_text(encoding="utf-8")
    assert "run & attack & median" in text
    rows = [line[:3] for line in text.splitlines() if line.startswith(("a &", "b &", "c &"))]
    assert rows[:2] == ["c &", "b &"]
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "Shown are 2 of the 3 runs" in page
    assert "AUROC" not in page.split("<h2>Figures")[0].split("</h1>")[1]
    assert "Light outlines" in (tmp_path / "r" / "figures.tex").read_text(encoding="utf-8")
    done = CliRunner().invoke(app, [*command, *choice, "--only", "bracket"])
    assert "--table-columns: expected no --only" in str(done.exception)
