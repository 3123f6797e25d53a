from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from greg_cert.report import load_results
from greg_cert.report.latex.tables import latex_table
from greg_cert.report.tables.comparison import (
    Comparison,
    compare,
    comparison_line,
    comparison_lines,
    holm,
)
from greg_cert.report.tables.forms import all_sheets, markdown_table
from greg_cert.report.tables.statement import statement


def by_closed_testing(ps):
    """Holm's correction as the closure of Bonferroni's: the worst of all sets with a test in it."""
    tests = range(len(ps))
    return [
        max(
            min(1.0, size * min(ps[j] for j in chosen))
            for size in range(1, len(ps) + 1)
            for chosen in combinations(tests, size)
            if i in chosen
        )
        for i in tests
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(ps):
    np.testing.assert_allclose(holm(ps), by_closed_testing(ps), rtol=1e-12)


def test_holm_with_tests_that_were_not_made():
    found = holm([0.01, None, 0.02])
    assert found[1] is None
    assert (found[0], found[2]) == pytest.approx((0.03, 0.04))
    assert holm([]) == []


@pytest.fixture
def three(made, tmp_path):
    """Three runs with methods and two OOD sets, and their frames."""
    frames = [made.with_methods(f) for f in made.realistic(80, names=("energy", "greg", "greg+"))]
    folder = made.write(tmp_path / "v", frames, baseline="energy")
    rng = np.random.default_rng(5)
    ood = [
        made.ood_of(f["run"].iloc[0], name, (k + 1) * rng.gamma(5, 0.02, 30), [np.inf] * 30, [0])
        for k, f in enumerate(frames)
        for name in ("mnist", "svhn")
    ]
    made.write_ood(folder, ood)
    return load_results(folder), frames, ood


def test_every_comparison_has_difference_interval_and_corrected_test(three):
    results, frames, ood = three
    found = compare(results, seed=1, resamples=999)
    assert [(c.run, c.dataset) for c in found if c.main] == [("greg", None), ("greg+", None)]
    base, ours = (frames[k]["radius_certified"].to_numpy() for k in (0, 2))
    c = found[1]
    assert c.difference == pytest.approx(np.median(ours - base))
    rows = np.random.default_rng(7).integers(0, 80, (4000, 80))
    ends = np.quantile(np.median((ours - base)[rows], axis=1), [0.025, 0.975])
    assert (c.difference_low, c.difference_high) == pytest.approx(tuple(ends), abs=0.01)
    assert c.ratio == pytest.approx(np.median(ours) / np.median(base))
    ratios = np.median(ours[rows], axis=1) / np.median(base[rows], axis=1)
    assert (c.low, c.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.05)
    assert c.clear
    ps = [stats.wilcoxon(frames[k]["radius_certified"], base).pvalue for k in (1, 2)]
    assert [x.p for x in found[:2]] == pytest.approx(ps)
    assert [x.holm for x in found[:2]] == pytest.approx(by_closed_testing(ps))
    assert {x.family for x in found[:2]} == {2}
    sets = [c for c in found if c.dataset is not None]
    assert [(c.run, c.dataset) for c in sets] == [
        *(("greg", "mnist"), ("greg", "svhn"), ("greg+", "mnist"), ("greg+", "svhn"))
    ]
    assert {(c.family, c.samples) for c in sets} == {(4, 30)}
    pairs = [(ood[2], ood[0]), (ood[3], ood[1]), (ood[4], ood[0]), (ood[5], ood[1])]
    medians = [tuple(np.median(f["radius_certified"]) for f in pair) for pair in pairs]
    assert [c.ratio for c in sets] == pytest.approx([a / b for a, b in medians])
    ps = [stats.wilcoxon(*(f["radius_certified"] for f in pair)).pvalue for pair in pairs]
    assert [c.holm for c in sets] == pytest.approx(by_closed_testing(ps))
    methods = [c for c in found if c.dataset is None and not c.main]
    names = ("CROWN radii", "CROWN-IBP radii", "\u03b1-CROWN radii")
    assert [c.quantity for c in methods] == [*names, *names]  # branched ones are the certified
    assert compare(results, seed=1, resamples=999) == found


def test_ood_samples_are_paired_by_index(made, small):
    one = made.ood_of("a", "x", [0.1, 0.2, 0.3, 0.4], [1.0] * 4)
    other = made.ood_of("b", "x", [0.9, 0.4, 0.6, 0.8], [1.0] * 4).iloc[1:].iloc[::-1]
    made.write_ood(small, [one, other])
    (c,) = [c for c in compare(load_results(small), resamples=99) if c.dataset]
    assert (c.samples, c.ratio) == (3, pytest.approx(2.0))
    assert c.difference == pytest.approx(0.3)


def test_no_ratio_stands_bare_anywhere(three):
    results, _, _ = three
    comparisons = compare(results, resamples=999)
    lines = [line for s in all_sheets(results, comparisons) for line in s.remarks]
    ratios = [line for line in lines if "ratio of median" in line]
    assert len(ratios) == 2 + 6 + 4
    for line in ratios:
        for words in ("paired bootstrap interval", "median paired difference", "n = "):
            assert words in line
        assert "Wilcoxon signed-rank p" in line
        assert "after Holm's correction p" in line
    heads = [line for line in lines if "one baseline, energy" in line]
    assert [line.split(" over ")[1] for line in heads] == ["2 tests.", "6 tests.", "4 tests."]
    text = markdown_table(results, comparisons)
    assert text.count("ratio of median") == 12
    assert text.count("signed-rank") == 12
    words = statement(results, comparisons)
    assert words.count("times the baseline's") == 2
    assert words.count("Wilcoxon signed-rank p") == words.count("median paired difference") == 2


def test_many_comparisons_are_a_table_of_their_own_in_latex(three):
    results, _, _ = three
    comparisons = compare(results, resamples=999)
    tex = latex_table(results, comparisons)
    table = tex.split(r"\label{tab:comparisons}")[1]
    assert "ratio of median certified" not in tex
    assert "corrected by Holm's method over 2 and 6 and 4 tests" in tex
    rows = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(rows) == len(comparisons) == 12
    c = comparisons[0]
    assert rows[0].startswith(f"{c.run} & certified & {c.ratio:.3g} & {c.low:.3g} to {c.high:.3g}")
    few = latex_table(results, comparisons[:3])
    assert "tab:comparisons" not in few
    assert few.count("after Holm's correction $p") == few.count("signed-rank $p") == 3


def test_a_single_comparison_needs_no_correction(small):
    (c,) = compare(load_results(small), resamples=99)
    assert (c.family, c.holm) == (1, c.p)
    assert comparison_lines([c]) == [comparison_line(c)]
    assert "Holm" not in comparison_line(c)


def test_an_interval_alone_is_no_clear_difference_after_correction():
    c = Comparison("b", "a", 9, 1.5, 1.1, 1.9, 0.03, holm=0.09, family=3)
    assert not c.clear
    assert Comparison("b", "a", 9, 1.5, 1.1, 1.9, 0.03, holm=0.03).clear
    assert not Comparison("b", "a", 9, 1.5, 0.9, 1.9, 0.01, holm=0.01).clear


def test_comparison_without_an_interval_says_so(made, tmp_path):
    none, some = [0.0] * 8, [0.1] * 8
    attack = [1.0] * 8
    frames = [made.frame_of("zero", none, attack), made.frame_of("some", some, attack)]
    results = load_results(made.write(tmp_path / "x", frames, baseline="zero"))
    (c,) = found = compare(results, resamples=99)
    assert (c.ratio, c.low, c.high) == (None, None, None)
    assert (c.difference, c.difference_low) == (0.1, 0.1)
    assert "undefined" in comparison_line(c)
    assert "median paired difference 0.1 (0.1 to 0.1); Wilcoxon" in comparison_line(c)
    assert "median paired difference 0.1" in statement(results, found)
    same = [made.frame_of("one", [0.1], [0.2]), made.frame_of("two", [0.1], [0.2])]
    (c,) = compare(load_results(made.write(tmp_path / "y", same, baseline="one")))
    assert (c.ratio, c.low, c.p) == (1.0, None, None)
    assert "no pair differs" in comparison_line(c)
    # Half of the baseline is 0, so that some resampled medians are 0 too.
    mixed = [
        made.frame_of("half", [0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1], [1.0] * 7),
        made.frame_of("full", [0.2] * 7, [1.0] * 7),
    ]
    (c,) = compare(load_results(made.write(tmp_path / "z", mixed, baseline="half")))
    assert c.ratio == pytest.approx(2.0)
    assert c.low is None


def test_no_baseline_means_no_comparison(made, tmp_path):
    frames = made.realistic(20)
    assert compare(load_results(made.write(tmp_path / "x", frames))) == []
