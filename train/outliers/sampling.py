"""Which auxiliary outliers to train on: selection rules over candidates with OOD scores.

Each rule is a pure function to long indices into the candidates. A low score marks an outlier that
is still mistaken for ID (hard), a high one an outlier detected already. Ties go to the lowest
index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.outliers.finite import check_finite, unit_rows
from greg_cert.train.outliers.kmeans import kmeans


def greedy_sample(scores: Tensor, count: int, *, check: bool = True) -> Tensor:
    """Indices of the `count` lowest scores: the hardest outliers, however alike.

    Args:
        scores: (N,) OOD scores, higher = more OOD.
        count: how many to take, with 1 ≤ count ≤ N.
        check: whether to look for NaN and infinity, which makes the host wait for the device.

    Returns:
        (count,) indices by rising score.

    Raises:
        UsageError: for a count out of range, or scores of the wrong shape or not finite.

    Source: Chen et al., "ATOM: Robustifying Out-of-distribution Detection Using Outlier Mining",
        ECML PKDD 2021, at quantile q = 0.
    """
    if scores.ndim != 1:
        raise UsageError(f"expected scores (N,), but got {tuple(scores.shape)}")
    if not 1 <= count <= len(scores):
        raise UsageError(f"expected 1 <= count <= {len(scores)} (the candidates), but got {count}")
    if check:
        check_finite(scores=scores)
    return scores.detach().argsort(stable=True)[:count]


def dos_sample(
    features: Tensor,
    scores: Tensor,
    n_clusters: int,
    *,
    per_cluster: int = 1,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    """Lowest-score members of each k-means cluster of L2-normalised features: hard and diverse.

    Args:
        features: (N, D) penultimate features of the candidates.
        scores: (N,) OOD scores, higher = more OOD.
        n_clusters: k, with 1 ≤ k ≤ N.
        per_cluster: picks; a smaller cluster gives all its members.
        backend: of `greg_cert.train.outliers.kmeans.kmeans`.
        generator: source of randomness.
        check: as for `two_ended_sample`.

    Returns:
        At most k·per_cluster indices, exactly so many where every cluster is that large.

    Raises:
        UsageError: for a value out of range or shapes that do not match.

    Source: Jiang et al., "DOS: Diverse Outlier Sampling for Out-of-Distribution Detection",
        ICLR 2024.
    """
    cluster = _clusters(features, scores, n_clusters, per_cluster, backend, generator, check)
    return cluster_ends(cluster, scores.detach(), n_clusters, per_cluster, wait=check)


def two_ended_sample(
    features: Tensor,
    scores: Tensor,
    n_clusters: int,
    *,
    per_cluster: int = 1,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Lowest-score and highest-score members of each k-means cluster of L2-normalised features.

    Low scores are outliers still mistaken for ID, which the value loss should see; high scores are
    detected already, and the gradient loss should keep them so. Clusters make both diverse.

    Args:
        features: (N, D) penultimate features of the candidates.
        scores: (N,) OOD scores, higher = more OOD.
        n_clusters: k, with 1 ≤ k ≤ N.
        per_cluster: picks at each end; a smaller cluster gives all its members to both ends.
        backend: of `greg_cert.train.outliers.kmeans.kmeans`.
        generator: source of randomness.
        check: whether to look for NaN and infinity, which makes the host wait for the device.
            Without it and with `per_cluster` 1 and the torch backend, nothing does; a cluster that
            is empty, because fewer than k candidates differ, then repeats the extreme of all.

    Returns:
        low_idx and high_idx, long tensors of at most k·per_cluster indices into the candidates,
        exactly k·per_cluster where every cluster is that large.

    Raises:
        UsageError: for a value out of range or shapes that do not match.

    Source: Sharifi et al., ECCV 2024, section 3.3.
    """
    cluster = _clusters(features, scores, n_clusters, per_cluster, backend, generator, check)
    return (
        cluster_ends(cluster, scores.detach(), n_clusters, per_cluster, wait=check),
        cluster_ends(cluster, -scores.detach(), n_clusters, per_cluster, wait=check),
    )


def _clusters(
    features: Tensor,
    scores: Tensor,
    n_clusters: int,
    per_cluster: int,
    backend: str,
    generator: torch.Generator | None,
    check: bool,
) -> Tensor:
    """The k-means cluster of each candidate (N,), by the direction of its features."""
    if features.ndim != 2 or scores.shape != features.shape[:1]:
        raise UsageError(
            "expected features (N, D) and scores (N,), "
            f"but got {tuple(features.shape)} and {tuple(scores.shape)}"
        )
    if per_cluster < 1:
        raise UsageError(f"expected per_cluster >= 1, but got {per_cluster}")
    if check:
        check_finite(scores=scores, features=features)
    points = unit_rows(features)
    return kmeans(points, n_clusters, backend=backend, generator=generator, check=False)[1]


def cluster_ends(
    cluster: Tensor, scores: Tensor, k: int, count: int, *, wait: bool = True
) -> Tensor:
    """Indices of the `count` lowest scores in each of k clusters, cluster by cluster.

    Without `wait` and for one a cluster, the host does not wait for the device; a cluster that is
    empty then gives the lowest of all.
    """
    by_score = scores.argsort(stable=True)
    order = by_score[cluster[by_score].argsort(stable=True)]  # by cluster, then by score
    grouped = cluster[order]
    if count == 1 and not wait:  # a fixed shape, so that the host need not wait
        names = torch.arange(k, device=cluster.device)
        first = torch.searchsorted(grouped, names).clamp_max(len(order) - 1)
        return torch.where(grouped[first] == names, order[first], by_score[0])
    begins = torch.searchsorted(grouped, grouped)  # where each one's cluster begins
    rank = torch.arange(len(order), device=order.device) - begins
    return order[rank < count]


def without_repeats(taken: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Places `taken` (M,) among `count` ≥ M, each repeat replaced by a random one that is not.

    What was there once stays in its place. The host does not wait for the device.
    """
    order = torch.arange(len(taken), device=taken.device)
    first = torch.full((count,), len(taken), device=taken.device)
    first.scatter_reduce_(0, taken, order, "amin")
    repeated = first[taken] != order
    coins = torch.rand(count, generator=generator, device=taken.device)
    others = (coins + (first < len(taken))).argsort()  # those that are taken last
    return torch.where(repeated, others[(repeated.cumsum(0) - 1).clamp_min(0)], taken)
