"""Optional radii and the smoothed detector: shown only when asked, each with its status."""

import re

import numpy as np
import pytest

from greg_cert.certificates.certificate_counts import id_side
from greg_cert.certificates.method_columns import OPTIONAL_METHODS
from greg_cert.certificates.methods import STATUS, column_of
from greg_cert.errors import RunError
from greg_cert.report import load_results
from greg_cert.report.latex.tables import latex_table
from greg_cert.report.page.samples import sample_lists
from greg_cert.report.tables.comparison import compare
from greg_cert.report.tables.forms import all_sheets, markdown_table, summary_table
from greg_cert.report.tables.rows import table_rows
from greg_cert.report.tables.runs_sheet import ladder_lines
from greg_cert.report.tables.smoothing import smoothing_rows
from greg_cert.report.wording import confidence

NAN = float("nan")
SMOOTHING = {"sigma": 0.25, "n": 10000, "alpha": 0.001}


def sheets(folder):
    results = load_results(folder)
    return all_sheets(results, compare(results, resamples=99))


def five(made):
    return made.frame_of("a", [0.1, 0.2, 0.3, 0.0, 9], [0.2, 0.5, 0.4, 0.6, 9], [4])


def test_columns_are_there_only_when_asked_each_with_its_status(made, tmp_path):
    plain = five(made)
    (runs,) = sheets(made.write(tmp_path / "plain", [plain]))
    some = made.with_methods(plain, ("alpha_crown", "clever"))
    (more,) = sheets(made.write(tmp_path / "some", [some]))
    new = {h.title: h.status for h in more.heads if h not in runs.heads}
    assert new == {
        "\u03b1-CROWN \u21132 radius, median": "proof",
        "CLEVER \u21132 radius, median": "estimate",
        "CLEVER above attack, %": "check",
        "CLEVER fit refused at 5 %, %": "check",
    }
    assert "estimate without proof" in more.caption
    unasked = plain.assign(radius_crown=NAN, radius_clever=NAN, smoothing_decision=None)
    (same,) = sheets(made.write(tmp_path / "unasked", [unasked]))
    assert same == runs


def test_numbers_of_the_methods_by_hand(made, tmp_path):
    frame = made.with_methods(five(made), ("crown", "clever"))
    frame["clever_fit_pvalue"] = [0.01, 0.5, 0.04, NAN, 0.0]
    (row,) = table_rows(load_results(made.write(tmp_path / "x", [frame])))
    assert row.methods["radius_crown"] == pytest.approx(0.08)
    # 0.18 0.36 0.54 0 against attacks 0.2 0.5 0.4 0.6.
    assert row.clever_above_attack == pytest.approx(1 / 4)
    # The rejected sample's p-value is left out, as is the one that has none.
    assert row.clever_fit_refused == pytest.approx(2 / 3)


def test_smoothing_counts_a_radius_only_where_the_decision_is_right(made, tmp_path):
    decisions = ["accepted", "rejected", "accepted", "abstained", "accepted"]
    frame = made.with_smoothing(five(made), decisions, [0.1, 5.0, 0.3, 0.0, 0.2])
    folder = made.write(tmp_path / "x", [frame])
    ood = made.ood_of("a", "mnist", [0.1, 0.2, 0.3], [1.0] * 3)
    decisions = ["rejected", "accepted", "abstained"]
    made.write_ood(folder, [made.with_smoothing(ood, decisions, [0.4, 7.0, 0.0])])
    inner, outer = smoothing_rows(load_results(folder))
    assert (inner.right, inner.wrong, inner.abstained) == (0.6, 0.2, 0.2)
    assert inner.median == pytest.approx(0.1)  # of 0.1, 0 (wrong), 0.3, 0 (abstained), 0.2
    assert inner.mean == pytest.approx(0.6 / 5)
    assert outer.right == outer.wrong == outer.abstained == pytest.approx(1 / 3)
    assert outer.median == 0.0
    assert outer.mean == pytest.approx(0.4 / 3)


def test_smoothing_is_said_to_be_about_the_smoothed_detector_everywhere(made, tmp_path):
    frame = made.with_smoothing(five(made), ["accepted"] * 4 + ["abstained"], [0.1] * 5)
    summary = made.summary_of([frame]) | {"smoothing": SMOOTHING}
    results = load_results(made.write(tmp_path / "x", [frame], summary))
    runs, smoothed = all_sheets(results, [])
    assert not any("mooth" in head.title for head in runs.heads)
    assert {h.status for h in smoothed.heads} == {"probabilistic proof", "measured", "count"}
    words = "About the smoothed detector, confidence 99.9 % each"
    assert words in made.html_of(results)
    assert words in markdown_table(results, [])
    assert words.replace("%", r"\%") in latex_table(results, [])
    text = " ".join(str(t.caption) for t in summary_table(results).renderables)
    assert words in text
    part = sample_lists(results, "a", {})[0].parts[0]
    title = "smoothed detector (probabilistic proof, confidence 99.9 % each)"
    assert part.rows[0][part.columns.index(title)] == "accepted to 0.100"
    bare = load_results(made.write(tmp_path / "bare", [frame]))
    assert "confidence that is not recorded" in markdown_table(bare, [])


@pytest.mark.parametrize(
    ("alpha", "words"),
    [(0.001, "99.9 %"), (0.05, "95 %"), (0.1, "90 %"), (1e-4, "99.99 %"), (1e-6, "99.9999 %")],
)
def test_confidence_is_not_rounded_up(alpha, words):
    assert confidence(alpha) == words


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("radius_crown", [0.1, NAN, 0.1, 0.1, 0.1]),
        ("radius_crown", [0.1, -0.1, 0.1, 0.1, 0.1]),
        ("radius_branch", [0.1, np.inf, 0.1, 0.1, 0.1]),
        ("radius_alpha_crown", ["far"] * 5),
        ("radius_clever", [-1.0] * 5),
        ("clever_fit_pvalue", [1.5] * 5),
        ("radius_smoothing", [0.1] * 5),
        ("smoothing_decision", ["maybe"] * 5),
        ("radius_certified", [0.1] * 5),  # the last sample is rejected
    ],
)
def test_what_a_column_cannot_hold_is_refused(made, tmp_path, column, values):
    frame = five(made).assign(**{column: values})
    if column == "smoothing_decision":
        frame["radius_smoothing"] = 0.1
    with pytest.raises(RunError, match=column if column != "radius_smoothing" else "smoothing"):
        load_results(made.write(tmp_path / "x", [frame]))


def test_abstention_is_no_radius_and_a_decision_has_one(made, tmp_path):
    for decision, radius in (("abstained", 0.1), ("accepted", NAN), ("accepted", np.inf)):
        frame = five(made).assign(smoothing_decision="accepted", radius_smoothing=0.2)
        frame.loc[2, ["smoothing_decision", "radius_smoothing"]] = [decision, radius]
        with pytest.raises(RunError, match=r"radius_smoothing.*row 2"):
            load_results(made.write(tmp_path / "y", [frame]))


def by_best(frame):
    """Rows as the method best leaves them."""
    right = frame["status"] != "rejected"
    return frame.assign(
        radius_best=frame["radius_certified"],
        radius_method=np.where(frame["radius_certified"] > 0, "branch", "none"),
        stopped_by=np.where(right, "budget", "rejected"),
    )


def test_what_stopped_the_search_is_counted_and_shown(made, tmp_path):
    frame = by_best(five(made))
    radii = (frame["radius_certified"] > 0).sum()
    counts = id_side(frame)
    assert counts["radius_method"] == {"branch": radii, "none": 5 - radii}
    assert sum(counts["stopped_by"].values()) == 5
    assert not {"radius_method", "stopped_by"} & set(id_side(five(made)))  # tables of before
    results = load_results(made.write(tmp_path / "x", [frame]))
    run = results.summary.runs["a"].model_copy(update=counts)
    (line,) = ladder_lines(results.summary.model_copy(update={"runs": {"a": run}}))
    radii_by = f"radii by branch {radii}, none {5 - radii}"
    assert line == f"a: {radii_by}; stopped by budget 4, rejected 1."
    assert ladder_lines(results.summary) == []


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("stopped_by", 0, "boredom", "expected one of share"),
        ("stopped_by", 0, "rejected", "rejected for status rejected alone"),
        ("radius_method", 0, "attack", "expected one of crown"),
        ("radius_method", 0, "none", "none for a certified radius of 0"),
        ("radius_best", 0, 0.5, "the largest of radius_best"),
    ],
)
def test_columns_of_best_fit_the_row(made, tmp_path, column, row, value, said):
    frame = by_best(five(made))
    frame.loc[row, column] = value
    with pytest.raises(RunError, match=f"{column if 'largest' not in said else 'radius'}.*{said}"):
        load_results(made.write(tmp_path / "x", [frame], methods=["best"]))


def test_a_method_may_be_asked_for_one_run_alone(made, tmp_path):
    one = made.with_methods(five(made), ("crown",))
    two = five(made).assign(run="b", radius_crown=NAN, radius_lipschitz=NAN)
    (runs,) = sheets(made.write(tmp_path / "x", [one, two]))
    for title, cells in (("CROWN", ["0.080", "\u2013"]), ("Lipschitz", ["0.050", "\u2013"])):
        at = next(k for k, head in enumerate(runs.heads) if head.title.startswith(title))
        assert [line.cells[at] for line in runs.lines] == cells


def test_latex_with_every_column_is_whole(made, tmp_path):
    frames = [made.with_methods(frame) for frame in made.realistic(30)]
    results = load_results(made.write(tmp_path / "x", frames, baseline="energy"))
    text = latex_table(results, [])
    blocks = [b.split(r"\bottomrule")[0].strip().splitlines() for b in text.split(r"\midrule")[1:]]
    widths = [{line.count(" & ") for line in block} for block in blocks]
    assert sum(width for each in widths for width in each) == 18
    assert len(widths) == 2
    kinds = re.findall(r"\\begin\{tabular\}\{l(r+)\}", text)
    assert [{len(kind)} for kind in kinds] == widths
    assert text.isascii()


def test_every_method_of_certify_has_its_column() -> None:
    shown = {method.column for method in OPTIONAL_METHODS} | {"radius_lipschitz", "radius_gradient"}
    shown |= {"radius_attack", "radius_smoothing"}
    assert {column_of(name) for name in STATUS} == shown
