from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clusters import NoHostSync, blobs, rng, unit_features
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.outliers import kmeans as kmeans_module
from greg_cert.train.outliers.kmeans import kmeans
from greg_cert.train.outliers.sampling import (
    dos_sample,
    greedy_sample,
    two_ended_sample,
)

BACKENDS = ("torch", "faiss")


def ends_by_hand(cluster: Tensor, scores: Tensor, count: int) -> tuple[list[int], list[int]]:
    low: list[int] = []
    high: list[int] = []
    for c in sorted(set(cluster.tolist())):
        members = [i for i, k in enumerate(cluster.tolist()) if k == c]
        members.sort(key=lambda i: float(scores[i]))
        low += members[:count]
        high += members[::-1][:count]
    return low, high


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ends_of_every_blob(backend: str) -> None:
    features, blob = blobs(2 if backend == "faiss" else 8)
    scores = torch.randn(len(blob), generator=rng(5))
    k = int(blob.max()) + 1
    low, high = two_ended_sample(features, scores, k, backend=backend, generator=rng(0))
    expected = ends_by_hand(blob, scores, 1)
    assert sorted(low.tolist()) == sorted(expected[0])
    assert sorted(high.tolist()) == sorted(expected[1])
    assert low.dtype == high.dtype == torch.long


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_cluster", [1, 3, 50])
@pytest.mark.parametrize("seed", range(2))
def test_the_ends_of_clusters_of_every_size(backend: str, per_cluster: int, seed: int) -> None:
    features = torch.randn(150, 5, generator=rng(seed)) * 3
    scores = torch.randn(150, generator=rng(seed + 50))
    _, cluster = kmeans(F.normalize(features, dim=1), 40, backend=backend, generator=rng(seed))
    assert torch.bincount(cluster).min() < 3 < torch.bincount(cluster).max()
    got = two_ended_sample(
        features, scores, 40, per_cluster=per_cluster, backend=backend, generator=rng(seed)
    )
    for one, expected in zip(got, ends_by_hand(cluster, scores, per_cluster), strict=True):
        assert sorted(one.tolist()) == sorted(expected)
        assert len(set(one.tolist())) == len(one)


def test_ties_are_settled_within_the_cluster() -> None:
    features, blob = blobs(4, 10)
    scores = torch.randint(0, 3, (len(blob),), generator=rng(1)).float()
    low, high = two_ended_sample(features, scores, 4, generator=rng(0))
    for c in range(4):
        mine = scores[blob == c]
        assert scores[low[blob[low] == c]].tolist() == [mine.min().item()]
        assert scores[high[blob[high] == c]].tolist() == [mine.max().item()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_cluster_gives_the_extremes_of_all(backend: str) -> None:
    features, scores = unit_features(40, 6), torch.randn(40, generator=rng(1))
    low, high = two_ended_sample(features, scores, 1, backend=backend, generator=rng())
    assert (low.tolist(), high.tolist()) == ([int(scores.argmin())], [int(scores.argmax())])
    low, high = two_ended_sample(
        features, scores, 1, per_cluster=7, backend=backend, generator=rng()
    )
    order = scores.argsort().tolist()
    assert sorted(low.tolist()) == sorted(order[:7])
    assert sorted(high.tolist()) == sorted(order[-7:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("n", "dim", "k"),
    [(384, 128, 64), (60, 2, 25), (200, 4, 100), (1, 16, 1), (2, 16, 2), (30, 16, 30)],
)
def test_every_cluster_gives_one_where_candidates_differ(
    backend: str, n: int, dim: int, k: int
) -> None:
    for seed in range(5):
        features = torch.randn(n, dim, generator=rng(seed))
        scores = torch.randn(n, generator=rng(seed + 9))
        for index in two_ended_sample(features, scores, k, backend=backend, generator=rng(seed)):
            assert len(index) == len(set(index.tolist())) == k
            assert 0 <= int(index.min()) <= int(index.max()) < n


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 3, 5, 8, 100])
def test_duplicated_candidates_give_at_most_one_pick_each(backend: str, k: int) -> None:
    """Five distinct points, twenty copies of each: five clusters at most, and no crash."""
    features, scores = torch.eye(5).repeat(20, 1), torch.randn(100, generator=rng(3))
    low, high = two_ended_sample(features, scores, k, backend=backend, generator=rng(0))
    for index in (low, high):
        assert 1 <= len(index) <= min(k, 5)
        assert len(set(index.tolist())) == len(index)
        assert len(set((index % 5).tolist())) == len(index)
    assert (scores[low] <= scores[high]).all()
    if backend == "torch":
        assert len(low) == len(high) == min(k, 5)
    if k >= 5 and len(low) == 5:
        for i in range(5):
            assert scores[low[low % 5 == i]].item() == scores[i::5].min().item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_that_are_all_alike_are_one_cluster(backend: str) -> None:
    for features in (torch.zeros(10, 4), torch.ones(10, 4)):
        got = two_ended_sample(features, torch.arange(10.0), 3, backend=backend, generator=rng())
        assert [i.tolist() for i in got] == [[0], [9]]


def test_rare_points_beside_many_copies_are_found_by_kmeans_plus_plus() -> None:
    base = torch.eye(6)
    features = base[torch.tensor([0] * 500 + [1, 2, 3, 4, 5])]
    for seed in range(10):
        low, _ = two_ended_sample(
            features, torch.randn(505, generator=rng(1)), 6, backend="torch", generator=rng(seed)
        )
        assert len(low) == 6
        assert set(range(500, 505)) < set(low.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_generator_alone_decides(backend: str) -> None:
    features, scores = unit_features(200, 16), torch.randn(200, generator=rng(1))

    def draw(seed: int) -> list[list[int]]:
        got = two_ended_sample(features, scores, 20, backend=backend, generator=rng(seed))
        return [i.tolist() for i in got]

    torch.manual_seed(0)
    first = draw(3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert draw(3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert draw(4) != first


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_length_of_a_feature_does_not_matter(backend: str) -> None:
    features, scores = torch.randn(200, 16, generator=rng(0)), torch.randn(200, generator=rng(1))
    # Powers of two, so that normalising gives the same floats.
    scale = 2.0 ** torch.randint(-20, 20, (200, 1), generator=rng(2))
    got = [
        two_ended_sample(f, scores, 20, backend=backend, generator=rng(0))
        for f in (features, features * scale)
    ]
    assert torch.equal(got[0][0], got[1][0])
    assert torch.equal(got[0][1], got[1][1])


def test_inputs_with_a_graph_and_in_half_precision_are_taken() -> None:
    features, blob = blobs()
    scores = torch.randn(len(blob), generator=rng(0))
    expected = two_ended_sample(features, scores, 8, generator=rng(0))
    got = two_ended_sample(
        features.clone().requires_grad_(), scores.clone().requires_grad_(), 8, generator=rng(0)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    half = two_ended_sample(features.half(), scores, 8, generator=rng(0))
    assert sorted(half[0].tolist()) == sorted(expected[0].tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 11}, "1 <= n_clusters <= 10 .*but got 11"),
        ({"per_cluster": 0}, "expected per_cluster >= 1, but got 0"),
        ({"features": torch.zeros(10)}, r"features \(N, D\) .*but got \(10,\) and \(10,\)"),
        ({"scores": torch.zeros(9)}, r"scores \(N,\), but got \(10, 3\) and \(9,\)"),
        ({"scores": torch.zeros(10, 1)}, r"but got \(10, 3\) and \(10, 1\)"),
    ],
)
def test_sampling_refuses_values_by_name(change: dict[str, object], message: str) -> None:
    call = {
        "features": torch.randn(10, 3, generator=rng()),
        "scores": torch.zeros(10),
        "n_clusters": 2,
        **change,
    }
    with pytest.raises(UsageError, match=message):
        two_ended_sample(**call)  # type: ignore[arg-type]


# without waiting for the device


def without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: k-means may not save work by looking at the data."""
    original = kmeans_module._on_device
    monkeypatch.setattr(
        kmeans_module, "_on_device", lambda *a, **kw: original(*a, **{**kw, "peek": False})
    )


def test_unchecked_sampling_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    without_looking(monkeypatch)
    features, scores = unit_features(200, 16), torch.randn(200, generator=rng(1))
    expected = two_ended_sample(features, scores, 20, generator=rng(0))
    with NoHostSync():
        got = two_ended_sample(features, scores, 20, generator=rng(0), check=False)
        dos = dos_sample(features, scores, 20, generator=rng(0), check=False)
        greedy_sample(scores, 20, check=False)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(dos, expected[0])
    with pytest.raises(AssertionError), NoHostSync():
        two_ended_sample(features, scores, 20, generator=rng(0))


def test_unchecked_sampling_of_copies_repeats_the_extremes() -> None:
    features, scores = torch.eye(5).repeat(20, 1), torch.randn(100, generator=rng(3))
    checked = two_ended_sample(features, scores, 8, generator=rng(0))
    unchecked = two_ended_sample(features, scores, 8, generator=rng(0), check=False)
    extremes = (int(scores.argmin()), int(scores.argmax()))
    for some, all_, extreme in zip(checked, unchecked, extremes, strict=True):
        assert len(some) == 5
        assert len(all_) == 8
        assert set(some.tolist()) == set(all_.tolist())
        assert all_.tolist().count(extreme) == 4


def test_unchecked_sampling_takes_any_count_a_cluster() -> None:
    features, scores = unit_features(200, 16), torch.randn(200, generator=rng(1))
    one, two = (
        two_ended_sample(features, scores, 20, per_cluster=4, generator=rng(0), check=check)
        for check in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# the other rules


def test_greedy_sampling_takes_the_lowest_scores_and_the_first_of_equals() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, -4.0, 2.0])
    assert greedy_sample(scores, 4).tolist() == [4, 1, 3, 2]
    assert greedy_sample(torch.zeros(100), 5).tolist() == [0, 1, 2, 3, 4]
    assert greedy_sample(scores.requires_grad_(), 6).tolist() == [4, 1, 3, 2, 5, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_cluster", [1, 3])
def test_dos_takes_the_low_end(backend: str, per_cluster: int) -> None:
    features, scores = unit_features(150, 8), torch.randn(150, generator=rng(1))
    options: dict[str, Any] = {"per_cluster": per_cluster, "backend": backend}
    got = dos_sample(features, scores, 12, generator=rng(0), **options)
    expected, _ = two_ended_sample(features, scores, 12, generator=rng(0), **options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: greedy_sample(torch.zeros(4), 0), "1 <= count <= 4 .*but got 0"),
        (lambda: greedy_sample(torch.zeros(4), 5), "1 <= count <= 4 .*but got 5"),
        (lambda: greedy_sample(torch.zeros(4, 1), 2), r"scores \(N,\), but got \(4, 1\)"),
        (lambda: dos_sample(torch.zeros(4, 2), torch.zeros(3), 2), r"and scores \(N,\)"),
        (lambda: dos_sample(torch.zeros(4, 2), torch.zeros(4), 2, per_cluster=0), "per_cluster"),
    ],
)
def test_rules_refuse_values_by_name(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
