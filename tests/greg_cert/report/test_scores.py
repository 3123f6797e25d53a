import numpy as np
import pandas as pd
import pytest

from greg_cert.errors import RunError, UsageError
from greg_cert.report import FigureStyle, load_results, write_report
from greg_cert.report.figures.registry import SCORE_FIGURE
from greg_cert.report.figures.scores import accepted_share, bin_edges, bin_shares, groups_of


@pytest.fixture
def folder(made, small):
    """The two runs of `small` with all of their scores."""
    frames = [made.frame_of(name, [0.1] * 5, [0.2] * 5, [4]) for name in ("a", "b")]
    return made.write_test_scores(small, [made.all_scores_of(frame) for frame in frames])


def scores(**columns):
    rows = {"run": "a", "part": "test", "index": [0, 1, 2], "score": [-15.0, -14.0, -12.0]}
    return pd.DataFrame(rows | columns)


def test_a_folder_without_scores_has_none_and_no_figure(small):
    results = load_results(small)
    assert results.test_scores is None
    assert results.scores_of("a") == {}
    with pytest.raises(UsageError, match=r"scores\.parquet"):
        SCORE_FIGURE.draw(results, FigureStyle())


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (scores().drop(columns="part"), "missing column part"),
        (scores(part="train"), "column part: expected test or ood/NAME, but got 'train'"),
        (scores(part="ood/"), "column part"),
        (scores(part="ood/x"), "expected rows of test for run 'a'"),
        (scores(score=[1.0, np.nan, 2.0]), "column score: expected a finite number"),
        (scores(score=["1", "2", "3"]), "column score: expected numbers"),
        (scores(index=[0, 1, 1]), "column index: 1 occurs twice"),
        (scores(index=[0.5, 1, 2]), "column index: expected integers"),
        (scores(run="c"), "column run: 'c' is not among the runs"),
        (scores(index=[100, 101, 102]), "column score: expected -15"),
        (scores().iloc[:0], "expected at least one row"),
    ],
)
def test_damaged_files_are_refused_by_column(made, small, frame, words):
    made.write_table(small / "scores.parquet", [frame])
    with pytest.raises(RunError, match=words):
        load_results(small)


def test_scores_of_another_network_than_the_certificates_are_refused(made, small):
    ood = made.ood_of("a", "mnist", [0.1, 0.2], [0.3, 0.4])
    made.write_ood(small, [ood])
    far = scores(part=["test", "ood/mnist", "ood/mnist"], index=[0, 100, 101])
    far["score"] = [-15.0, -8.0, -7.5]
    made.write_table(small / "scores.parquet", [far])
    with pytest.raises(RunError, match="part ood/mnist, index 101"):
        load_results(small)
    far["score"] = [-15.0, -8.0, -7.99]
    made.write_test_scores(small, [far])
    assert load_results(small).test_scores is not None


def test_shares_by_hand():
    parts = {
        "test": np.array([-15.0, -14.0, -13.0, -12.0]),
        "ood/x": np.array([-14.0, -5.0]),
        "ood/y": np.array([-6.0, -5.0, -4.0, -3.0]),
    }
    groups = groups_of(parts)
    assert list(groups) == ["ID test", "x", "y"]
    assert [accepted_share(sets, -13.0) for sets in groups.values()] == [0.75, 0.5, 0.0]
    many = groups_of({**parts, "ood/z": np.array([-20.0]), "ood/w": np.array([0.0])})
    assert list(many) == ["ID test", "4 OOD sets"]
    assert accepted_share(many["4 OOD sets"], -13.0) == pytest.approx((0.5 + 0.0 + 1.0 + 0.0) / 4)


def test_no_sample_is_lost_from_the_bins():
    rng = np.random.default_rng(0)
    groups = {"ID test": [rng.normal(size=5000)], "x": [rng.standard_cauchy(3000), np.array([7.0])]}
    edges = bin_edges(groups, 1.6, 30)
    assert len(edges) == 31
    assert edges[0] < 1.6 < edges[-1]
    for sets in groups.values():
        assert bin_shares(sets, edges).sum() == pytest.approx(1.0)
    one = [np.array([2.0])]
    np.testing.assert_allclose(bin_shares(one, bin_edges({"ID test": one}, 2.0, 4)).sum(), 1.0)


@pytest.mark.parametrize(("count", "sets", "width"), [(1, 0, 3.25), (3, 2, 6.75), (4, 6, 3.25)])
def test_figure_shows_the_shares_and_all_type_lies_inside(made, tmp_path, count, sets, width):
    names = [f"run number {k} $x_1$" for k in range(count)]
    frames = made.realistic(20, names=names)
    folder = made.write(tmp_path / "v", frames)
    datasets = [f"a-long-name-of-an-ood-set-{k}" for k in range(sets)]
    made.write_test_scores(folder, [made.all_scores_of(f, datasets) for f in frames])
    results = load_results(folder)
    with made.figure_of(SCORE_FIGURE, results, dpi=60, width=width) as figure:
        made.assert_readable(figure)
        assert len(figure.axes) == count
        for run, axes in zip(results.runs, figure.axes, strict=True):
            threshold = results.summary.runs[run].threshold
            assert axes.lines[0].get_xdata()[0] == threshold
            share = 100 * np.mean(results.scores_of(run)["test"] <= threshold)
            legend = axes.get_legend()
            assert legend.get_texts()[0].get_text() == f"ID test: {share:.1f} %"
            # Neither the line nor a bar runs through the name of the threshold.
            name = axes.texts[0].get_window_extent()
            assert legend.get_window_extent().y0 >= axes.bbox.y1 - 1
            tops = [p.get_data().values.max() for p in axes.patches if hasattr(p, "get_data")]
            assert axes.transData.transform((0, max(tops)))[1] <= name.y0 + 3
        made.assert_apart([axes.get_legend() for axes in figure.axes])


def test_a_bin_of_ood_samples_does_not_flatten_those_of_id(made, small):
    frames = [made.frame_of(name, [0.1] * 5, [0.2] * 5, [4]) for name in ("a", "b")]
    scores = [made.all_scores_of(frame) for frame in frames]
    far = scores[0]["part"] == "ood/svhn"
    scores[0].loc[far, "score"] = -5.0 + 1e-3 * np.arange(far.sum())
    results = load_results(made.write_test_scores(small, scores))
    with made.figure_of(SCORE_FIGURE, results, dpi=60) as figure:
        made.assert_readable(figure)
        cut, whole = figure.axes
        heights = [patch.get_data().values for patch in cut.patches if hasattr(patch, "get_data")]
        top = cut.get_ylim()[1]
        assert max(max(values) for values in heights) == 1.0
        assert top == pytest.approx(1.2 * 2.0 * max(heights[0]))
        gamma, share = (text.get_text() for text in cut.texts)
        assert gamma == "$\\gamma$ = \u221213.7"
        assert share == "100 %"
        assert len(whole.texts) == 1
        made.assert_apart(cut.texts)


def test_report_has_the_figure_where_there_are_scores(folder, one_figure):
    files = write_report(folder, style=FigureStyle(dpi=60))
    assert SCORE_FIGURE.name in files.figures
    page = files.html.read_text(encoding="utf-8")
    assert "score_distribution.png" in page
    assert "accepts 95 % of the ID calibration split" in page
    assert "score_distribution.pdf" in files.latex_figures.read_text(encoding="utf-8")
