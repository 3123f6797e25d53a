"""Ranks and singletons: what the authors' code clusters, and how it fills a step up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clusters import NoHostSync, rng
from pydantic import ValidationError
from torch import Tensor

from greg_cert.stages import StageConfig
from greg_cert.train.outliers.choose import choose
from greg_cert.train.outliers.sampling import without_repeats


def stage(method: str = "greg+", **changes: Any) -> StageConfig:
    return StageConfig(**{"method": method, "epochs": 1, "lr": 0.1, "batch_size": 8, **changes})


def directions(sizes: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features in clusters that cannot be mistaken, of such sizes, and scores."""
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    cluster = cluster[torch.randperm(len(cluster), generator=rng(seed))]
    return torch.eye(len(sizes))[cluster], torch.randn(len(cluster), generator=rng(seed + 1))


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("method", ["dos", "greg+"])
def test_only_candidates_of_the_ranks_are_clustered(method: str, start: int) -> None:
    """The rest has features of its own, which would make clusters of their own."""
    features, scores = directions([9] * 8)
    by_score = scores.argsort()
    outside = torch.cat([by_score[:start], by_score[start + 60 :]])
    features = torch.cat([features, torch.zeros(72, 12)], 1)
    features[outside] = torch.eye(20)[8 + torch.arange(len(outside)) % 12]
    some = stage(method, candidates=9, ranks=(start, start + 60))
    chosen = choose(some, features, scores, 8, generator=rng())
    inside = by_score[start : start + 60]
    for end, sign in zip(chosen, (1, -1 if method == "greg+" else 1), strict=True):
        expected = set()
        for c in features[inside].argmax(1).unique():
            members = [i for i in inside.tolist() if features[i].argmax() == c]
            expected.add(min(members, key=lambda i: sign * float(scores[i])))
        assert set(end.tolist()) == expected
    assert int(by_score[start]) in chosen[0]


SIZES = [1, 1, 1, 4, 5, 6, 7, 23]


@pytest.mark.parametrize("share_ends", [True, False])
def test_what_a_singleton_cannot_give_is_drawn_from_the_others(share_ends: bool) -> None:
    features, scores = directions(SIZES)
    ends = [
        {int(end) for end in choose(stage(), features, scores, 8, generator=rng())[side]}
        for side in (0, 1)
    ]
    assert len(ends[0] & ends[1]) == 3
    filled = stage(singletons="random", share_ends=share_ends)
    draws = set()
    for seed in range(30):
        low, high = choose(filled, features, scores, 8, generator=rng(seed))
        both = low.tolist() if share_ends else [*low.tolist(), *high.tolist()]
        assert len(both) == len(set(both)) == 16
        assert ends[0] | ends[1] <= set(both)
        if not share_ends:
            assert set(low.tolist()) == ends[0]
        draws.add(frozenset(set(both) - ends[0] - ends[1]))
        again = choose(filled, features, scores, 8, generator=rng(seed))
        assert torch.equal(again[0], low)
    assert len(draws) > 20
    assert all(len(drawn) == 3 for drawn in draws)
    assert len(frozenset().union(*draws)) > 25  # of 35 that are no end of a cluster


def test_clusters_smaller_than_their_picks_are_filled_up_too() -> None:
    features, scores = directions([1, 1, 20, 20])
    plain = stage(clusters=4, aux_ratio=1)
    assert len(choose(plain, features, scores, 8, generator=rng())[0]) == 6
    filled = stage(clusters=4, singletons="random", share_ends=True)
    low, high = choose(filled, features, scores, 8, generator=rng())
    assert low is high
    assert len(set(low.tolist())) == len(low) == 16
    (only, _) = choose(stage("dos", clusters=4, singletons="random"), features, scores, 8)
    assert len(set(only.tolist())) == len(only) == 8


def test_repeats_are_replaced_without_waiting_for_the_device() -> None:
    taken = torch.tensor([3, 0, 3, 3, 5, 0])
    with NoHostSync():
        found = without_repeats(taken, 9, rng())
    assert found[[0, 1, 4]].tolist() == [3, 0, 5]
    assert len(set(found.tolist())) == 6
    assert set(without_repeats(taken, 6, rng()).tolist()) == set(range(6))
    distinct = torch.tensor([4, 2, 7])
    assert torch.equal(without_repeats(distinct, 8, rng()), distinct)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "energy", "ranks": (0, 40)}, "dos or two_ended and no pool .* got random"),
        ({"pool": 100, "singletons": "random"}, "but got two_ended and 100"),
        ({"ranks": (41, 48)}, "leave 8 to choose from in a step of 48 .*but got 7"),
        ({"ranks": (9, 9)}, "but got 0"),
        ({"ranks": (40, 60)}, None),
        ({"candidates": 1, "singletons": "random"}, "leave 16 .*but got 8"),
        ({"method": "dos", "candidates": 1, "singletons": "random"}, None),
    ],
)
def test_too_few_to_cluster_are_refused(fields: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert stage(**fields)
        return
    with pytest.raises(ValidationError, match=message):
        stage(**fields)
