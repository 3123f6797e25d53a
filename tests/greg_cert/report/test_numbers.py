import numpy as np
import pytest
from scipy import stats

from greg_cert.report import load_results
from greg_cert.report.figures.curves import certified_fraction, corners, unbroken_fraction
from greg_cert.report.figures.histogram import histogram_edges
from greg_cert.report.page.samples import most_and_least_robust
from greg_cert.report.tables.comparison import compare, comparison_line
from greg_cert.report.tables.rows import share, table_rows
from greg_cert.report.wording import p_value, radius, radius_digits, short_names


def test_rows_equal_numbers_worked_out_by_hand(small):
    a, b = table_rows(load_results(small))
    # a: 0.1 0.2 0.3 0 and a rejected 0; attacks 0.2 0.5 0.4 0.6 0.
    assert a.certified_median == pytest.approx(0.1)
    assert a.certified_mean == pytest.approx(0.6 / 5)
    assert a.lipschitz_median == pytest.approx(0.05)
    assert a.gradient_median == pytest.approx(0.2)
    assert a.attack_median == pytest.approx(0.4)
    assert a.share == pytest.approx(np.median([0.5, 0.4, 0.75, 0.0]))
    assert (a.samples, a.certified, a.rejected, a.undecided) == (5, 3, 1, 1)
    assert a.attacks_found == 4
    # The estimate is twice the certificate: 0.2 0.4 0.6 0 against 0.2 0.5 0.4 0.6.
    assert a.estimate_above_attack == pytest.approx(1 / 4)
    # b: attacks 0.4 0.5 inf 0.2 and a rejected 0.
    assert b.attack_median == pytest.approx(0.4)
    assert b.attacks_found == 3
    assert b.share == pytest.approx(np.median([0.5, 0.8, 0.5]))
    assert (a.id_accuracy, a.fpr, a.auroc, a.fpr_ood_recall) == (0.981, 0.0123, 0.9951, 0.02)


def test_median_attack_is_infinite_where_most_attacks_failed(made, tmp_path):
    inf = float("inf")
    frame = made.frame_of("a", [0.1, 0.2, 0.3], [0.2, inf, inf])
    row = table_rows(load_results(made.write(tmp_path / "x", [frame])))[0]
    assert row.attack_median == inf
    assert radius(row.attack_median, 3, 2.0) == "none ≤ 2"
    assert radius(row.attack_median, 3, None) == "none"


def test_share_needs_a_found_attack():
    none = share(np.array([0.1, 0.0]), np.array([np.inf, 0.0]), np.array([True, False]))
    assert none is None


def test_violations_are_counted(made, tmp_path):
    frame = made.frame_of("a", [0.1, 0.3], [0.2, 0.2])
    assert table_rows(load_results(made.write(tmp_path / "x", [frame])))[0].violations == 1


def test_curves_at_radii_computed_by_hand():
    certified = np.array([0.1, 0.2, 0.2, 0.0, 0.0])
    attack = np.array([0.2, 0.5, np.inf, 0.3, 0.0])
    kept = np.array([True, True, True, True, False])
    at = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.21, 0.3, 0.5, 9.0])
    expected = np.array([4, 3, 3, 2, 2, 0, 0, 0, 0]) / 5
    np.testing.assert_allclose(certified_fraction(certified, kept, at), expected)
    expected = np.array([4, 4, 4, 4, 3, 3, 2, 1, 1]) / 5
    np.testing.assert_allclose(unbroken_fraction(attack, kept, at), expected)


def test_lower_curve_never_exceeds_the_upper_one(made):
    frame = made.realistic(300, found=0.8)[0]
    kept = (frame["status"] != "rejected").to_numpy()
    proven, broken = (frame[f"radius_{c}"].to_numpy() for c in ("certified", "attack"))
    at = np.linspace(0, 2, 400)
    low, high = certified_fraction(proven, kept, at), unbroken_fraction(broken, kept, at)
    assert (low <= high).all()
    assert (np.diff(low) <= 0).all()
    assert (np.diff(high) <= 0).all()


def test_corners_are_sorted_and_bounded():
    found = corners(np.array([0.3, 0.1]), np.array([np.inf, 0.3, 5.0]), end=1.0)
    assert found.tolist() == [0.0, 0.1, 0.3, 1.0]


def test_histogram_edges_cover_the_largest_radius_and_survive_nothing():
    edges = histogram_edges([np.array([0.1, 0.4]), np.array([])], 4)
    np.testing.assert_allclose(edges, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert histogram_edges([np.array([])], 2).tolist() == [0.0, 0.5, 1.0]


def test_comparison_equals_an_independent_ratio_interval_and_test(made, tmp_path):
    frames = made.realistic(200)
    results = load_results(made.write(tmp_path / "x", frames, baseline="energy"))
    (c,) = compare(results, seed=3, resamples=2000)
    theirs, ours = (f["radius_certified"].to_numpy() for f in frames)
    assert c.ratio == pytest.approx(np.median(ours) / np.median(theirs))
    rng = np.random.default_rng(11)
    rows = rng.integers(0, 200, (4000, 200))
    ratios = np.median(ours[rows], axis=1) / np.median(theirs[rows], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert c.low == pytest.approx(low, abs=0.03)
    assert c.high == pytest.approx(high, abs=0.03)
    assert c.p == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)
    assert c.clear
    assert compare(results, seed=3, resamples=2000) == [c]
    assert "n = 200 pairs" in comparison_line(c)


def test_comparison_without_an_interval_says_so(made, tmp_path):
    none, some = [0.0] * 8, [0.1] * 8
    attack = [1.0] * 8
    frames = [made.frame_of("zero", none, attack), made.frame_of("some", some, attack)]
    (c,) = compare(load_results(made.write(tmp_path / "x", frames, baseline="zero")))
    assert (c.ratio, c.low, c.high) == (None, None, None)
    assert "undefined" in comparison_line(c)
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


def test_extremes_leave_out_rejected_samples_and_break_ties(made):
    frame = made.frame_of("a", [0.3, 0.1, 0.0, 0.0, 0.2], [1, 1, 0.9, 0.8, 1], [1])
    most, least = most_and_least_robust(frame, 2)
    assert most["index"].tolist() == [100, 104]
    assert least["index"].tolist() == [103, 102]


def test_short_names_stay_different_and_within_the_limit():
    names = ["x" * 50 + end for end in ("a", "b")] + ["x" * 20 + str(k) + "x" * 40 for k in (1, 2)]
    short = short_names([*names, "ok", "line\nbreak"], 12)
    assert len(set(short.values())) == len(short)
    assert all(len(name) <= 12 for name in short.values())
    assert short["ok"] == "ok"
    assert short["line\nbreak"] == "line break"


@pytest.mark.parametrize(
    ("largest", "digits"), [(1.9, 3), (0.19, 3), (0.05, 4), (0.003, 5), (0.0, 3), (1e-9, 7)]
)
def test_three_figures_of_the_largest_radius(largest, digits):
    assert radius_digits([largest, float("inf")]) == digits


def test_p_values_too_small_for_a_float_are_bounds():
    assert p_value(0.0) == "p < 1e-300"
    assert p_value(3.21e-12) == "p = 3.2e-12"
