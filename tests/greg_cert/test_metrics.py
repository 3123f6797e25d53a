from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pytorch_ood.metrics import AUROC, FPRAtTPR
from sklearn.metrics import roc_curve

from greg_cert.errors import UsageError
from greg_cert.metrics import (
    accuracy,
    aupr_in,
    aupr_out,
    auroc,
    detection_metrics,
    fpr_at_ood_recall,
    fpr_at_tpr,
    threshold_at_tpr,
)

Metric = Callable[..., float]
PAIRED: list[Metric] = [fpr_at_tpr, fpr_at_ood_recall, auroc, aupr_in, aupr_out]

SHARES = st.sampled_from(["0.01", "0.05", "0.1", "0.3", "0.5", "0.7", "0.9", "0.95", "0.99", "1"])
# Few distinct values, so that ties are common.
SCORES = st.lists(st.integers(-6, 6).map(lambda v: v / 4), min_size=1, max_size=45)


def share(hits: list[bool]) -> Fraction:
    return Fraction(sum(hits), len(hits))


def brute_threshold(scores: list[float], tpr: Fraction) -> float:
    return min(c for c in scores if share([s <= c for s in scores]) >= tpr)


def average_precision(positive: list[float], negative: list[float]) -> float:
    """Sum over the distinct thresholds of the rise in recall times the precision there."""
    total, before = 0.0, 0.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        hits = sum(v >= threshold for v in positive)
        false = sum(v >= threshold for v in negative)
        recall = hits / len(positive)
        total += (recall - before) * hits / max(hits + false, 1)
        before = recall
    return total


def authors_fpr(ids: NDArray[np.float64], ood: NDArray[np.float64]) -> float:
    """As the authors' script: of all scores, the loosest of those with recall nearest to 0.95."""
    thresholds = np.unique(np.r_[ids, ood])
    far = [(abs(np.mean(ids <= t) - 0.95), -t) for t in thresholds]
    return float(np.mean(ood <= -min(far)[1]))


def continuous(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(-5, 2, 137), rng.normal(-3, 3, 211)


# threshold


@pytest.mark.parametrize(
    ("scores", "tpr", "expected"),
    [
        (list(range(1, 21)), 0.95, 19.0),  # 0.95 · 20 is 19 exactly
        (list(range(1, 101)), 0.95, 95.0),
        (list(range(1, 101)), 0.951, 96.0),
        (list(range(1, 21)), 1.0, 20.0),
        (list(range(1, 8)), 0.5, 4.0),
        (list(range(1, 101)), 0.07, 7.0),  # 0.07 · 100 is 7.000000000000001 in floats
        (list(range(1, 11)), 0.05, 1.0),
        ([3.0], 0.95, 3.0),
        ([1.0, 2.0, 2.0, 2.0], 0.5, 2.0),
        ([2.0, 2.0, 2.0, 9.0], 0.75, 2.0),
        ([2.0, 2.0, 2.0, 9.0], 0.76, 9.0),
        ([1e20, -1e20, 0.0], 0.6, 0.0),
    ],
)
def test_threshold_by_hand(scores: list[float], tpr: float, expected: float) -> None:
    assert threshold_at_tpr(scores, tpr) == expected
    assert threshold_at_tpr(scores[::-1], tpr) == expected


@pytest.mark.parametrize("percent", [5, 7, 29, 57, 58, 70, 90, 95, 99, 100])
def test_no_count_is_off_by_one_through_rounding(percent: int) -> None:
    counts = [*range(1, 401), 1_000, 9_999, 10_000, 50_000, 300_000]
    got = [threshold_at_tpr(np.arange(1, n + 1), percent / 100) for n in counts]
    assert got == [math.ceil(Fraction(percent * n, 100)) for n in counts]


@settings(max_examples=150, deadline=None)
@given(scores=SCORES, tpr=SHARES)
def test_threshold_is_the_smallest_that_accepts_enough(scores: list[float], tpr: str) -> None:
    threshold = threshold_at_tpr(scores, float(tpr))
    assert threshold == brute_threshold(scores, Fraction(tpr))
    assert share([s <= threshold for s in scores]) >= Fraction(tpr)
    assert share([s < threshold for s in scores]) < Fraction(tpr)


# false positive rates


def test_the_two_conventions_by_hand() -> None:
    ids, ood = [0.0, 1.0, 2.0, 10.0], [1.0, 3.0, 4.0, 5.0, 6.0]
    # 75 % of the ID samples are <= 2, and so is one outlier in five.
    assert fpr_at_tpr(ids, ood, 0.75) == 0.2
    # 80 % of the outliers are >= 3, and so is one ID sample in four.
    assert fpr_at_ood_recall(ids, ood, 0.8) == 0.25
    # All outliers are >= 1, and so are three ID samples in four.
    assert fpr_at_ood_recall(ids, ood, 1.0) == 0.75


def test_an_outlier_at_the_threshold_is_accepted() -> None:
    assert fpr_at_tpr([1.0, 2.0], [2.0, 2.0, 3.0], 1.0) == pytest.approx(2 / 3)


@settings(max_examples=150, deadline=None)
@given(ids=SCORES, ood=SCORES, tpr=SHARES)
def test_false_positive_rates_by_brute_force(ids: list[float], ood: list[float], tpr: str) -> None:
    wanted = Fraction(tpr)
    # Over every threshold that reaches the recall, the least error on the other side.
    accepted = min(
        share([o <= c for o in ood]) for c in ids if share([i <= c for i in ids]) >= wanted
    )
    rejected = min(
        share([i >= c for i in ids]) for c in ood if share([o >= c for o in ood]) >= wanted
    )
    assert fpr_at_tpr(ids, ood, float(tpr)) == pytest.approx(float(accepted), abs=1e-12)
    assert fpr_at_ood_recall(ids, ood, float(tpr)) == pytest.approx(float(rejected), abs=1e-12)


def test_the_two_conventions_mirror_each_other() -> None:
    ids, ood = continuous()
    assert fpr_at_tpr(ids, ood, 0.9) == fpr_at_ood_recall(-ood, -ids, 0.9)
    assert fpr_at_tpr(ids, ood) != fpr_at_ood_recall(ids, ood)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tpr", [0.5, 0.8, 0.95])
def test_false_positive_rates_on_sklearns_curve(seed: int, tpr: float) -> None:
    ids, ood = continuous(seed)
    scores, is_ood = np.concatenate([ids, ood]), np.repeat([0, 1], [137, 211])
    fpr, recall, _ = roc_curve(1 - is_ood, -scores, drop_intermediate=False)
    assert fpr_at_tpr(ids, ood, tpr) == pytest.approx(fpr[np.argmax(recall >= tpr)], abs=1e-12)
    fpr, recall, _ = roc_curve(is_ood, scores, drop_intermediate=False)
    expected = fpr[np.argmax(recall >= tpr)]
    assert fpr_at_ood_recall(ids, ood, tpr) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_ood_recall_convention_is_that_of_pytorch_ood(seed: int) -> None:
    ids, ood = continuous(seed)
    scores = torch.from_numpy(np.concatenate([ids, ood]))
    labels = torch.tensor([0] * 137 + [-1] * 211)
    (expected,) = FPRAtTPR(tpr=0.95).update(scores, labels).compute().values()
    assert fpr_at_ood_recall(ids, ood, 0.95) == pytest.approx(expected, abs=1e-6)
    assert fpr_at_tpr(ids, ood, 0.95) != pytest.approx(expected, abs=1e-3)
    (area,) = AUROC().update(scores, labels).compute().values()
    assert auroc(ids, ood) == pytest.approx(area, abs=1e-6)


# areas


def test_areas_by_hand() -> None:
    ids, ood = [1.0, 2.0], [2.0, 3.0]
    assert auroc(ids, ood) == (3 + 0.5) / 4
    assert aupr_out(ids, ood) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert aupr_in(ids, ood) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # One outlier above three ID samples, one below all: no symmetry between the two.
    ids, ood = [1.0, 2.0, 3.0], [0.0, 4.0]
    assert auroc(ids, ood) == 0.5
    assert aupr_out(ids, ood) == pytest.approx(0.5 * 1 + 0.5 * 2 / 5)
    assert aupr_in(ids, ood) == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)


@settings(max_examples=100, deadline=None)
@given(ids=SCORES, ood=SCORES)
def test_areas_by_brute_force(ids: list[float], ood: list[float]) -> None:
    pairs = [1.0 if o > i else 0.5 if o == i else 0.0 for i, o in itertools.product(ids, ood)]
    assert auroc(ids, ood) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert aupr_out(ids, ood) == pytest.approx(average_precision(ood, ids), abs=1e-12)
    flipped = average_precision([-v for v in ids], [-v for v in ood])
    assert aupr_in(ids, ood) == pytest.approx(flipped, abs=1e-12)


@pytest.mark.parametrize("metric", PAIRED)
def test_monotone_maps_change_nothing(metric: Metric) -> None:
    ids, ood = continuous()
    expected = metric(ids, ood)
    for name, f in {"affine": lambda v: 8 * v - 3, "exp": np.exp, "cube": lambda v: v**3}.items():
        assert metric(f(ids), f(ood)) == expected, name
    assert metric(-ids, -ood) != expected


@pytest.mark.parametrize("metric", PAIRED)
def test_lists_arrays_and_tensors_agree(metric: Metric) -> None:
    ids, ood = [-2.0, -1.5, 0.5, -1.5], [0.5, -1.0, 2.0]
    expected = metric(ids, ood)
    assert metric(np.array(ids, dtype=np.float32), np.array(ood)) == expected
    assert metric(torch.tensor(ids), torch.tensor(ood, dtype=torch.float64)) == expected
    assert metric(torch.tensor(ids, requires_grad=True), tuple(ood)) == expected
    assert metric(torch.tensor(ids, dtype=torch.bfloat16), ood) == expected
    assert isinstance(expected, float)


def test_integers_are_scores_too() -> None:
    assert threshold_at_tpr(torch.tensor([3, 1, 2]), 0.5) == 2.0
    # Unsigned integers must not wrap around when they are negated.
    assert fpr_at_ood_recall(np.array([1, 9], np.uint8), np.array([5, 6], np.uint8)) == 0.5


def test_inputs_stay_as_they_were() -> None:
    ids, ood = np.array([3.0, 1.0, 2.0]), np.array([2.0, 0.0])
    detection_metrics(ids, ood)
    assert ids.tolist() == [3.0, 1.0, 2.0]
    assert ood.tolist() == [2.0, 0.0]


# errors


@pytest.mark.parametrize("metric", PAIRED)
@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]], 3.0])
def test_empty_or_shapeless_scores_are_refused_by_name(metric: Metric, bad: object) -> None:
    with pytest.raises(UsageError, match=r"id_scores of shape \(N,\) with N >= 1"):
        metric(bad, [1.0])
    with pytest.raises(UsageError, match=r"ood_scores of shape \(N,\) with N >= 1"):
        metric([1.0], bad)


@pytest.mark.parametrize("metric", PAIRED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_with_their_place(
    metric: Metric, bad: float
) -> None:
    with pytest.raises(UsageError, match=rf"finite id_scores, but got {bad} at index 2"):
        metric([1.0, 2.0, bad], [1.0])
    with pytest.raises(UsageError, match=rf"finite ood_scores, but got {bad} at index 0"):
        metric([1.0], torch.tensor([bad, 1.0]))


@pytest.mark.parametrize("tpr", [0.0, -0.1, 1.0001, 95.0, math.nan])
@pytest.mark.parametrize(
    "call",
    [
        lambda tpr: threshold_at_tpr([1.0], tpr),
        lambda tpr: fpr_at_tpr([1.0], [2.0], tpr),
        lambda tpr: fpr_at_ood_recall([1.0], [2.0], tpr),
    ],
)
def test_rates_out_of_range_are_refused_with_their_value(
    call: Callable[[float], float], tpr: float
) -> None:
    with pytest.raises(UsageError, match=rf"0 < tpr <= 1, but got {tpr}"):
        call(tpr)


# accuracy


def test_accuracy_counts_largest_entries() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0], [2.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 1])) == 0.5
    assert accuracy(logits, logits.argmax(1)) == 1.0


def test_accuracy_is_a_double() -> None:
    assert accuracy(torch.eye(3), torch.tensor([0, 2, 1])) == 1 / 3


@pytest.mark.parametrize(
    ("logits", "labels"), [((4, 3), (3,)), ((4,), (4,)), ((0, 3), (0,)), ((4, 3), (4, 1))]
)
def test_accuracy_refuses_shapes_that_do_not_match(
    logits: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=r"logits \(N, K\) and labels \(N,\)") as caught:
        accuracy(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))
    assert f"{logits} and {labels}" in str(caught.value)


@pytest.mark.parametrize("count", [20, 137, 145, 200])
def test_the_authors_fpr_is_ours_or_one_id_step_above(count: int) -> None:
    """At 137, 130 ID samples are nearest to 95 % and 131 the first above: both accept alike."""
    below, differ = 0.95 * count - math.floor(0.95 * count), 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        ids, ood = rng.normal(-5, 2, count), rng.normal(-3, 3, 400)
        ranked, at = np.sort(ids), threshold_at_tpr(ids)
        ours, theirs = fpr_at_tpr(ids, ood), authors_fpr(ids, ood)
        if 0 < below < 0.5:
            assert theirs == ours
        else:
            assert theirs == np.mean(ood < ranked[ranked > at][0]) >= ours
        differ += ours != theirs
    assert differ == 0 if count == 137 else differ > 5
