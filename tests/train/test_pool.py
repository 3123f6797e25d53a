from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greg_cert.errors import DataError, UsageError
from greg_cert.train.feed.feature_store import FeatureStore
from greg_cert.train.feed.pool import ClusterEnds, collect_ends, fit_centroids, sample_pool
from greg_cert.train.outliers.sampling import _ends, greedy_sample

ROWS, DIM, K = 700, 8, 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def content(dtype: str = "float32") -> tuple[Any, Any]:
    """Features around twelve directions; scores with many ties."""
    generator = np.random.default_rng(1)
    directions = generator.standard_normal((K, DIM))
    features = directions[generator.integers(K, size=ROWS)]
    features = features + 0.1 * generator.standard_normal((ROWS, DIM))
    return features.astype(dtype), generator.integers(0, 30, ROWS).astype(np.float32)


def stored(path: Path, shard_rows: int = 100, dtype: str = "float32") -> FeatureStore:
    store = FeatureStore.create(path, rows=ROWS, dim=DIM, shard_rows=shard_rows, dtype=dtype)
    features, scores = content(dtype)
    for i in store.missing():
        rows = slice(*store.span(i))
        store.write(i, features[rows], scores[rows])
    return store


def nearest(features: Any, centroids: Any) -> torch.Tensor:
    """Cluster of each row, by direct distances in float64."""
    unit = torch.nn.functional.normalize(torch.from_numpy(features).double(), dim=1)
    return torch.cdist(unit, torch.from_numpy(centroids).double()).argmin(1)


@pytest.mark.parametrize("per_cluster", [1, 3, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_streamed_ends_are_those_of_the_rule_in_memory(
    tmp_path: Path, per_cluster: int, dtype: str
) -> None:
    store = stored(tmp_path, dtype=dtype)
    centroids = fit_centroids(store, K)
    ends = collect_ends(store, centroids, per_cluster, chunk_rows=33)
    features, scores = content(dtype)
    cluster = nearest(features, centroids)
    for got, sign in ((ends.low(), 1), (ends.high(), -1)):
        expected = _ends(cluster, sign * torch.from_numpy(scores), K, per_cluster, True)
        assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("strategy", ["random", "greedy", "dos", "two_ended"])
def test_chunks_and_shards_do_not_matter(tmp_path: Path, strategy: str) -> None:
    results = set()
    for shard_rows in (64, 100, 5000):
        store = stored(tmp_path / str(shard_rows), shard_rows)
        for chunk_rows in (1, 50, 10**6):
            low, high = sample_pool(
                store, strategy, 24, n_clusters=_k(strategy), chunk_rows=chunk_rows
            )
            results.add((*low.tolist(), -1, *high.tolist()))
            assert low.dtype == high.dtype == torch.long
            assert len(low) == len(set(low.tolist())) == len(high) == 24
            assert torch.equal(low, high) == (strategy != "two_ended")
    assert len(results) == 1


def _k(strategy: str) -> int | None:
    return K if strategy in ("dos", "two_ended") else None


def test_greedy_is_the_rule_in_memory(tmp_path: Path) -> None:
    scores = torch.from_numpy(content()[1])
    for count in (1, 40, ROWS):
        low, _ = sample_pool(stored(tmp_path), "greedy", count, chunk_rows=37)
        assert low.tolist() == greedy_sample(scores, count).tolist()


def test_strategies_agree_where_they_should(tmp_path: Path) -> None:
    store = stored(tmp_path)
    low, high = sample_pool(store, "two_ended", 2 * K, n_clusters=K)
    assert torch.equal(sample_pool(store, "dos", 2 * K, n_clusters=K)[0], low)
    cluster = nearest(content()[0], fit_centroids(store, K))
    assert torch.equal(cluster[low], cluster[high])
    one, two = (sample_pool(store, "random", 50, seed=s)[0] for s in (0, 1))
    assert one.tolist() != two.tolist()
    assert len(sample_pool(store, "dos", 9)[0]) <= 9


def test_clusters_are_of_directions_and_bounded_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path)
    taken: list[int] = []
    take = FeatureStore.take

    def counted(self: FeatureStore, rows: Any) -> Any:
        taken.append(len(rows))
        return take(self, rows)

    monkeypatch.setattr(FeatureStore, "take", counted)
    centroids = fit_centroids(store, 5, train_points=30)
    assert taken == [150]
    assert centroids.shape == (5, DIM)
    assert (np.linalg.norm(centroids, axis=1) <= 1 + 1e-6).all()
    assert np.array_equal(centroids, fit_centroids(store, 5, train_points=30))
    assert not np.array_equal(centroids, fit_centroids(store, 5, train_points=30, seed=1))


def test_as_many_clusters_as_rows(tmp_path: Path) -> None:
    low, high = sample_pool(stored(tmp_path), "two_ended", ROWS, train_points=1)
    assert len(low) == len(high) > 0.9 * ROWS


def test_machines_stream_their_own_shards(tmp_path: Path) -> None:
    store = stored(tmp_path)
    centroids = fit_centroids(store, K)
    whole = collect_ends(store, centroids, 3)
    parts = [collect_ends(store, centroids, 3, shards=s) for s in ([4, 0], [1, 6, 2], [3, 5])]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = ClusterEnds(K, 3)
        for i in order:
            merged.merge(parts[i])
        merged.merge(parts[0])  # a part that arrives twice counts once
        assert merged.low().tolist() == whole.low().tolist()
        assert merged.high().tolist() == whole.high().tolist()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ends_do_not_depend_on_how_rows_arrive(data: st.DataObject) -> None:
    k, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, k - 1), st.integers(-3, 3)), min_size=0, max_size=30)
    )
    cluster = np.array([c for c, _ in rows], np.int64)
    scores = np.array([s for _, s in rows], np.float32)
    expected = {1: [], -1: []}  # type: dict[int, list[int]]
    for sign in expected:
        for c in range(k):
            mine = sorted((sign * s, i) for i, (of, s) in enumerate(rows) if of == c)
            expected[sign] += [i for _, i in mine[:size]]
    order = np.array(data.draw(st.permutations(range(len(rows)))), np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    ends = [ClusterEnds(k, size), ClusterEnds(k, size)]
    for i, part in enumerate(np.split(order, cuts)):
        ends[i % 2].update(cluster[part], scores[part], part)
    ends[0].merge(ends[1])
    assert ends[0].low().tolist() == expected[1]
    assert ends[0].high().tolist() == expected[-1]


def test_memory_of_the_ends_is_bounded() -> None:
    ends = ClusterEnds(10, 3)
    generator = np.random.default_rng(0)
    for i in range(20):
        ends.update(generator.integers(10, size=500), -np.full(500, i), np.arange(500) + 500 * i)
        assert len(ends.low()) == len(ends.high()) == 30
    assert ends.low().min() >= 500 * 19
    assert ends.high().max() < 500


def test_missing_shards_are_refused(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (tmp_path / "scores-000002.npy").unlink()
    with pytest.raises(DataError, match=r"expected all 7 shards, but \[2\] are missing"):
        sample_pool(store, "random", 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("best", 3), {}, "strategy in random, greedy, dos, two_ended, but got 'best'"),
        (("random", 0), {}, "1 <= count <= 700 .*but got 0"),
        (("greedy", 701), {}, "1 <= count <= 700 .*but got 701"),
        (("random", 3), {"n_clusters": 3}, "no n_clusters for random, but got 3"),
        (("dos", 7), {"n_clusters": 3}, "multiple of n_clusters 3, but got 7"),
        (("dos", 7), {"n_clusters": 0}, "multiple of n_clusters 0, but got 7"),
        (("dos", 7), {"train_points": 0}, "train_points >= 1, but got 0"),
        (("greedy", 7), {"chunk_rows": 0}, "chunk_rows >= 1, but got 0"),
    ],
)
def test_pool_values_are_refused_by_name(
    tmp_path: Path, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        sample_pool(stored(tmp_path), *arguments, **options)


def test_values_of_the_ends_are_refused_by_name(tmp_path: Path) -> None:
    ends, one = ClusterEnds(2, 1), np.zeros(1, np.int64)
    with pytest.raises(UsageError, match="n_clusters >= 1, but got 0"):
        ClusterEnds(0, 1)
    with pytest.raises(UsageError, match="per_cluster >= 1, but got 0"):
        ClusterEnds(1, 0)
    with pytest.raises(UsageError, match=r"\(n,\), but got \(1,\), \(2,\)"):
        ends.update(one, np.zeros(2), one)
    for wrong in (-1, 2):
        with pytest.raises(UsageError, match="0 <= cluster < 2, but got"):
            ends.update(one + wrong, np.zeros(1), one)
    with pytest.raises(UsageError, match="finite scores"):
        ends.update(one, np.array([np.nan]), one)
    with pytest.raises(UsageError, match=r"\(2, 1\), but got \(2, 2\)"):
        ends.merge(ClusterEnds(2, 2))
    with pytest.raises(UsageError, match=r"centroids \(k, 8\), but got \(3, 2\)"):
        collect_ends(stored(tmp_path), np.zeros((3, 2), np.float32), 1)
