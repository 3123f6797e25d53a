"""Energy-based clustering sampling of auxiliary outliers (the "+" of GReg+)."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.kmeans import kmeans


def two_ended_sample(
    features: Tensor,
    scores: Tensor,
    n_clusters: int,
    *,
    per_cluster: int = 1,
    backend: str = "auto",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Lowest-score and highest-score members of each k-means cluster of L2-normalised features.

    Low scores are outliers still mistaken for ID, which the value loss should see; high scores are
    detected already, and the gradient loss should keep them so. Clusters make both diverse.

    Args:
        features: (N, D) penultimate features of the candidates.
        scores: (N,) OOD scores, higher = more OOD.
        n_clusters: k, with 1 ≤ k ≤ N.
        per_cluster: picks at each end; a smaller cluster gives all its members to both ends.
        backend: of `greg_cert.train.kmeans.kmeans`.
        generator: source of randomness.

    Returns:
        low_idx and high_idx, long tensors of at most k·per_cluster indices into the candidates,
        exactly k·per_cluster where every cluster is that large.

    Raises:
        UsageError: for a value out of range or shapes that do not match.

    Source: Sharifi et al., ECCV 2024, section 3.3.
    """
    if features.ndim != 2 or scores.shape != features.shape[:1]:
        raise UsageError(
            "expected features (N, D) and scores (N,), "
            f"but got {tuple(features.shape)} and {tuple(scores.shape)}"
        )
    if per_cluster < 1:
        raise UsageError(f"expected per_cluster >= 1, but got {per_cluster}")
    if not torch.isfinite(scores).all() or not torch.isfinite(features).all():
        raise UsageError("expected finite features and scores, but found NaN or infinity")
    unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
    _, cluster = kmeans(unit, n_clusters, backend=backend, generator=generator)
    return (
        _ends(cluster, scores.detach(), per_cluster),
        _ends(cluster, -scores.detach(), per_cluster),
    )


def _ends(cluster: Tensor, scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` lowest scores in each cluster."""
    by_score = scores.argsort(stable=True)
    order = by_score[cluster[by_score].argsort(stable=True)]  # by cluster, then by score
    grouped = cluster[order]
    first = torch.searchsorted(grouped, grouped)  # where each one's cluster begins
    rank = torch.arange(len(order), device=order.device) - first
    return order[rank < count]
