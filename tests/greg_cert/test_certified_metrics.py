"""Population metrics against hand-computed cases, brute force, and what any numbers must obey."""

import numpy as np
import pytest

from greg_cert.certificates.certified_metrics import (
    adversarial_auroc,
    attacked_fpr,
    average_certified_radius,
    certified_acceptance,
    certified_fpr,
    guaranteed_auroc,
    median_radius,
)
from greg_cert.errors import UsageError
from greg_cert.metrics import auroc

INF, NAN = float("inf"), float("nan")
SHARES = (certified_acceptance, certified_fpr, attacked_fpr)
AREAS = (guaranteed_auroc, adversarial_auroc)


def test_certified_acceptance_by_hand():
    # Proven 0.1, 0.2 and 0.3; the two zeros are a rejected and an undecided sample.
    found = certified_acceptance([0.1, 0.3, 0.0, 0.2, 0.0], [0.0, 0.1, 0.15, 0.2, 0.3, 0.31])
    assert found.tolist() == [0.6, 0.6, 0.4, 0.4, 0.2, 0.0]


def test_certified_and_attacked_fpr_by_hand():
    # Accepted clean, undecided, then proven to 0.1 and to 0.4.
    certified, attack = [0.0, 0.0, 0.1, 0.4], [0.0, 0.3, 0.2, INF]
    at = [0.0, 0.1, 0.2, 0.3, 0.4, 9.0]
    assert certified_fpr(certified, at).tolist() == [0.5, 0.5, 0.75, 0.75, 0.75, 1.0]
    assert attacked_fpr(attack, at).tolist() == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75]


@pytest.mark.parametrize("share", SHARES)
def test_one_radius_may_be_a_number(share):
    assert share([0.2, 0.4], 0.3).tolist() == [0.5]


@pytest.mark.parametrize("seed", range(5))
def test_shares_equal_counting_and_move_one_way(seed):
    rng = np.random.default_rng(seed)
    proven = rng.choice([0.0, 0.1, 0.2, 0.3, 0.4], 60)
    attack = proven + rng.choice([0.1, 0.2, INF], 60)
    attack[proven == 0] *= rng.integers(0, 2, int((proven == 0).sum())).clip(1e-9)
    at = np.array([0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 5.0])
    accepted = certified_acceptance(proven, at)
    high, low = certified_fpr(proven, at), attacked_fpr(attack, at)
    for k, r in enumerate(at):
        assert accepted[k] == pytest.approx(sum(p > 0 and p >= r for p in proven) / 60)
        assert high[k] == pytest.approx(sum(not (p > 0 and p >= r) for p in proven) / 60)
        assert low[k] == pytest.approx(sum(a <= r for a in attack) / 60)
    assert (np.diff(accepted) <= 0).all()
    assert (np.diff(high) >= 0).all()
    assert (np.diff(low) >= 0).all()
    assert (low <= high).all()  # no attack lies inside a proof here


def test_areas_by_hand():
    # Pairs (id, ood): 1 < 2, 1 < 3, 2 = 2 (a tie, against us), 2 < 3.
    for area in AREAS:
        assert area([1.0, 2.0], [2.0, 3.0]) == 0.75
        assert area([1.0, 2.0], [2.0, -INF]) == 0.25
        assert area([1.0], [-INF, -INF]) == 0.0
        assert area([1.0], [1.0]) == 0.0
        assert area([-1.0, 0.0], [0.5]) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_areas_equal_counting_pairs_and_stay_below_the_clean_one(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-3, 3, 37).astype(float)  # integers, for many ties
    clean = rng.integers(-2, 5, 23).astype(float)
    attacked = clean - rng.integers(0, 3, 23)
    bound = attacked - rng.integers(0, 2, 23)
    bound[:3] = -INF
    for area, scores in ((guaranteed_auroc, bound), (adversarial_auroc, attacked)):
        pairs = [o > i for o in scores for i in ids]
        assert area(ids, scores) == pytest.approx(sum(pairs) / len(pairs))
    clean_auroc = auroc(ids, clean)
    assert guaranteed_auroc(ids, bound) <= adversarial_auroc(ids, attacked) <= clean_auroc


def test_without_ties_and_moves_all_areas_are_one_auroc():
    rng = np.random.default_rng(0)
    ids, ood = rng.normal(size=50), rng.normal(1.0, size=40)
    assert guaranteed_auroc(ids, ood) == pytest.approx(auroc(ids, ood))
    assert adversarial_auroc(ids, ood) == pytest.approx(auroc(ids, ood))


def test_area_falls_as_bounds_fall():
    rng = np.random.default_rng(1)
    ids, bound = rng.normal(size=50), rng.normal(1.0, size=40)
    areas = [guaranteed_auroc(ids, bound - shift) for shift in (0.0, 0.1, 0.5, 1.0, 5.0)]
    assert areas == sorted(areas, reverse=True)


def test_median_and_mean_count_zeros_and_missed_attacks():
    assert median_radius([0.0, 0.0, 0.3, 0.4, 0.5]) == 0.3
    assert median_radius([0.1, INF]) == INF
    assert average_certified_radius([0.0, 0.0, 0.3, 0.5]) == pytest.approx(0.2)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    ("values", "radii", "words"),
    [
        ([0.1, NAN], [0.1], "NaN.*index 1"),
        ([0.1, -0.2], [0.1], r">= 0, but got -0\.2 at index 1"),
        ([], [0.1], "N >= 1"),
        ([[0.1]], [0.1], "shape"),
        ([0.1], [NAN], "radii.*NaN"),
        ([0.1], [-1.0], "radii >= 0"),
    ],
)
def test_shares_refuse_what_is_no_radius(share, values, radii, words):
    with pytest.raises(UsageError, match=words):
        share(values, radii)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize(
    ("ids", "ood", "words"),
    [
        ([NAN], [0.0], "id_scores without NaN"),
        ([0.0], [NAN], "without NaN"),
        ([INF], [0.0], "finite id_scores, but got inf"),
        ([0.0], [INF], "< inf, but got inf"),
        ([], [0.0], "N >= 1"),
    ],
)
def test_areas_refuse_what_is_no_score(area, ids, ood, words):
    with pytest.raises(UsageError, match=words):
        area(ids, ood)


@pytest.mark.parametrize("summary", [median_radius, average_certified_radius])
@pytest.mark.parametrize("values", [[NAN], [-1.0], []])
def test_summaries_refuse_what_is_no_radius(summary, values):
    with pytest.raises(UsageError):
        summary(values)
