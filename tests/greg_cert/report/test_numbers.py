import numpy as np
import pytest

from greg_cert.certificates.robust_samples import most_and_least_robust
from greg_cert.report import load_results
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
    assert (a.samples, a.certified, a.wrong) == (5, 3, 1)
    assert a.attacks_found == 4
    # b: attacks 0.4 0.5 inf 0.2 and a rejected 0.
    assert b.attack_median == pytest.approx(0.4)
    assert b.attacks_found == 3
    assert b.share == pytest.approx(np.median([0.5, 0.8, 0.5]))
    assert (a.id_accuracy, a.fpr, a.auroc) == (0.981, 0.0123, 0.9951)


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
