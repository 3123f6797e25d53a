"""Selection of outliers from a pool on disk that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.errors import DataError, UsageError
from greg_cert.train.feed.feature_store import FeatureStore
from greg_cert.train.outliers.finite import unit_rows

STRATEGIES = ("random", "greedy", "dos", "two_ended")
CHUNK_ROWS = 2**16

Array = NDArray[Any]


def sample_pool(
    store: FeatureStore,
    strategy: str,
    count: int,
    *,
    n_clusters: int | None = None,
    train_points: int = 256,
    iterations: int = 20,
    chunk_rows: int = CHUNK_ROWS,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Low and high rows of a pool, by the rules of `greg_cert.train.outliers.sampling`.

    In one or two reads. `random`, `greedy` and `dos` select one set, which stands at both ends.
    Memory: one chunk, the training sample of k·train_points·D floats, and O(count).

    Args:
        store: the pool, with every shard written.
        strategy: `random`, `greedy`, `dos` or `two_ended`.
        count: rows at each end; for the last two a multiple of `n_clusters`.
        n_clusters: k of `dos` and `two_ended`, `count` by default; the others take none.
        train_points: rows a cluster that k-means is fitted on, at most.
        iterations: of k-means.
        chunk_rows: rows read at a time; the result does not depend on it, nor on the shards, but
            where a row is as near to two centres as float32 can tell.
        seed: of every draw.

    Returns:
        low_idx and high_idx, long, of at most `count` rows: fewer where a cluster has fewer than
        count / k members.

    Raises:
        UsageError: for a value out of range.
        DataError: for a shard that is missing, truncated or of another layout.

    Source: Sharifi et al., ECCV 2024, section 3.3, for pools beyond memory.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"expected strategy in {', '.join(STRATEGIES)}, but got {strategy!r}")
    if not 1 <= count <= store.rows:
        raise UsageError(f"expected 1 <= count <= {store.rows} (the rows), but got {count}")
    if missing := store.missing():
        raise DataError(
            f"{store.path}: expected all {store.shards} shards, but {missing} are missing"
        )
    if strategy in ("random", "greedy"):
        if n_clusters is not None:
            raise UsageError(f"expected no n_clusters for {strategy}, but got {n_clusters}")
        if strategy == "random":
            rows = np.random.default_rng(seed).choice(store.rows, count, replace=False)
        else:
            rows = _lowest_of_all(store, count, chunk_rows)
        index = torch.from_numpy(rows)
        return index, index
    k = count if n_clusters is None else n_clusters
    if k < 1 or count % k:
        raise UsageError(f"expected count a multiple of n_clusters {k}, but got {count}")
    centroids = fit_centroids(store, k, train_points=train_points, iterations=iterations, seed=seed)
    ends = collect_ends(store, centroids, count // k, chunk_rows=chunk_rows)
    low = torch.from_numpy(ends.low())
    return low, low if strategy == "dos" else torch.from_numpy(ends.high())


def fit_centroids(
    store: FeatureStore,
    n_clusters: int,
    *,
    train_points: int = 256,
    iterations: int = 20,
    seed: int = 0,
) -> NDArray[np.float32]:
    """k-means centres (k, D) of the L2-normalised features, fitted by faiss on a random sample.

    Args:
        store: the pool; only shards that hold rows of the sample are read.
        n_clusters: 1 ≤ k ≤ rows.
        train_points: rows a cluster in the sample, at most, ≥ 1.
        iterations: of Lloyd's algorithm.
        seed: of the sample and of the starting centres.

    Returns:
        (k, D) float32; the same on every machine with the same store, seed and number of GPUs.

    Raises:
        UsageError: for a value out of range.
        DataError: for a shard that is missing, truncated or of another layout.
    """
    import faiss

    if not 1 <= n_clusters <= store.rows:
        raise UsageError(
            f"expected 1 <= n_clusters <= {store.rows} (the rows), but got {n_clusters}"
        )
    if train_points < 1:
        raise UsageError(f"expected train_points >= 1, but got {train_points}")
    size = min(store.rows, n_clusters * train_points)
    rows = np.random.default_rng(seed).choice(store.rows, size, replace=False, shuffle=False)
    sample = _unit(store.take(np.sort(rows)))
    engine = faiss.Kmeans(
        store.dim,
        n_clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=train_points,
        gpu=faiss.get_num_gpus() > 0,
    )
    engine.train(sample)
    return np.array(engine.centroids, dtype=np.float32)


def collect_ends(
    store: FeatureStore,
    centroids: NDArray[np.float32],
    per_cluster: int,
    *,
    shards: Iterable[int] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> ClusterEnds:
    """The lowest and highest scores of each cluster among some shards, in one read.

    Args:
        store: the pool.
        centroids: (k, D) of `fit_centroids`.
        per_cluster: rows kept at each end of each cluster.
        shards: which to read, all by default: a machine's own part, to be merged with the others'.
        chunk_rows: rows read at a time.

    Returns:
        What was kept.

    Raises:
        UsageError: for a value out of range.
        DataError: for a shard that is missing, truncated or of another layout.
    """
    import faiss

    if centroids.ndim != 2 or centroids.shape[1] != store.dim:
        raise UsageError(f"expected centroids (k, {store.dim}), but got {centroids.shape}")
    ends = ClusterEnds(len(centroids), per_cluster)
    index: Any = faiss.IndexFlatL2(store.dim)
    index.add(np.ascontiguousarray(centroids, dtype=np.float32))
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    for chunk in store.chunks(chunk_rows, shards):
        _, cluster = index.search(_unit(chunk.features), 1)
        rows = np.arange(chunk.start, chunk.start + len(cluster))
        ends.update(cluster[:, 0], chunk.scores, rows)
    return ends


class ClusterEnds:
    """Rows of the lowest and of the highest scores in each cluster, kept while a pool streams by.

    Holds at most 2·k·per_cluster rows. What is kept does not depend on the order or the grouping of
    the rows seen, and a row seen twice counts once, so parts of a pool can be merged in any order.
    """

    def __init__(self, n_clusters: int, per_cluster: int) -> None:
        for name, value in (("n_clusters", n_clusters), ("per_cluster", per_cluster)):
            if value < 1:
                raise UsageError(f"expected {name} >= 1, but got {value}")
        self.n_clusters = n_clusters
        self.per_cluster = per_cluster
        self._ends = [_End(n_clusters, per_cluster), _End(n_clusters, per_cluster)]

    def update(self, cluster: Array, scores: Array, indices: Array) -> None:
        """Take in some rows.

        Args:
            cluster: (n,) integers, 0 ≤ cluster < k.
            scores: (n,) finite.
            indices: (n,) integers that name the rows; equal scores are kept by lowest index.

        Raises:
            UsageError: for shapes that differ, or a value out of range.
        """
        if not cluster.ndim == 1 or not cluster.shape == scores.shape == indices.shape:
            raise UsageError(
                "expected cluster, scores and indices (n,), "
                f"but got {cluster.shape}, {scores.shape} and {indices.shape}"
            )
        if len(cluster) and not (cluster.min() >= 0 and cluster.max() < self.n_clusters):
            raise UsageError(
                f"expected 0 <= cluster < {self.n_clusters}, "
                f"but got {cluster.min()} to {cluster.max()}"
            )
        if not np.isfinite(scores).all():
            raise UsageError("expected finite scores, but found NaN or infinity")
        for end, sign in zip(self._ends, (1, -1), strict=True):
            end.add(cluster, sign * scores, indices)

    def merge(self, other: ClusterEnds) -> None:
        """Take in what another has kept, as of another machine with the same centroids.

        Args:
            other: of the same sizes; it stays as it is.

        Raises:
            UsageError: where the sizes differ.
        """
        mine = (self.n_clusters, self.per_cluster)
        theirs = (other.n_clusters, other.per_cluster)
        if mine != theirs:
            raise UsageError(
                f"expected the same (n_clusters, per_cluster) {mine}, but got {theirs}"
            )
        for end, more in zip(self._ends, other._ends, strict=True):
            end.add(*more.kept)

    def low(self) -> NDArray[np.int64]:
        """Rows of the lowest scores, by cluster and then by rising score."""
        return self._ends[0].kept[2]

    def high(self) -> NDArray[np.int64]:
        """Rows of the highest scores, by cluster and then by falling score."""
        return self._ends[1].kept[2]


class _End:
    """The lowest `size` keys of each cluster."""

    def __init__(self, k: int, size: int) -> None:
        self.size = size
        self.kept = (np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
        self.worst = np.full(k, np.inf)  # above this a key has no place

    def add(self, cluster: Array, keys: Array, indices: Array) -> None:
        hopeful = keys <= self.worst[cluster]
        if not hopeful.any():
            return
        new: Sequence[Array] = (cluster[hopeful], keys[hopeful], indices[hopeful])
        cluster, keys, indices = (np.concatenate(pair) for pair in zip(self.kept, new, strict=True))
        order = np.lexsort((indices, keys, cluster))
        cluster, keys, indices = cluster[order], keys[order], indices[order]
        seen = (np.diff(cluster, prepend=-1) == 0) & (np.diff(indices, prepend=-1) == 0)
        cluster, keys, indices = cluster[~seen], keys[~seen], indices[~seen]
        rank = np.arange(len(cluster)) - np.searchsorted(cluster, cluster)
        self.worst[cluster[rank == self.size - 1]] = keys[rank == self.size - 1]
        best = rank < self.size
        self.kept = (cluster[best], keys[best], indices[best])


def _lowest_of_all(store: FeatureStore, count: int, chunk_rows: int) -> NDArray[np.int64]:
    end = _End(1, count)
    for chunk in store.chunks(chunk_rows):
        rows = np.arange(chunk.start, chunk.start + len(chunk.scores))
        end.add(np.zeros(len(rows), np.int64), chunk.scores, rows)
    return end.kept[2]


def _unit(features: Array) -> NDArray[np.float32]:
    """Rows of length 1, float32."""
    return unit_rows(torch.from_numpy(features)).numpy()
