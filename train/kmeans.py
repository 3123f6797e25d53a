"""k-means: k-means++ and Lloyd's iterations in torch on the device, or faiss for large pools."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError

BACKENDS = ("auto", "torch", "faiss")
_TORCH_LIMIT = 2**22  # points × clusters × 1: beyond it, faiss


def kmeans(
    points: Tensor,
    n_clusters: int,
    *,
    backend: str = "auto",
    iterations: int = 10,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Centres (k, D) and the cluster of each point (N,), minimising the summed squared distance.

    Args:
        points: (N, D) with N ≥ k, floating and finite.
        n_clusters: k ≥ 1.
        backend: `torch`, `faiss`, or `auto` by size.
        iterations: Lloyd's iterations at most.
        generator: source of randomness, on the points' device.

    Raises:
        UsageError: for a value out of range.

    Source: Arthur and Vassilvitskii, "k-means++", SODA 2007.
    """
    if points.ndim != 2 or not points.is_floating_point():
        raise UsageError(
            f"expected floating points (N, D), but got {tuple(points.shape)} of {points.dtype}"
        )
    if not 1 <= n_clusters <= len(points):
        raise UsageError(
            f"expected 1 <= n_clusters <= {len(points)} (the number of points), "
            f"but got {n_clusters}"
        )
    if backend not in BACKENDS:
        raise UsageError(f"expected backend in {', '.join(BACKENDS)}, but got {backend!r}")
    if backend == "auto":
        backend = "torch" if len(points) * n_clusters <= _TORCH_LIMIT else "faiss"
    points = points.detach().float()
    if backend == "faiss":
        return _faiss(points, n_clusters, iterations, generator)
    return _lloyd(points, _plus_plus(points, n_clusters, generator), iterations)


def _plus_plus(points: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Indices of k starting centres, each drawn by its squared distance to those before it."""
    squares = (points * points).sum(1)
    chosen = torch.empty(k, dtype=torch.long, device=points.device)
    uniform = torch.ones(len(points), device=points.device)
    chosen[0] = torch.multinomial(uniform, 1, generator=generator)[0]
    nearest = torch.full_like(uniform, torch.inf)
    for i in range(1, k):
        latest = chosen[i - 1 : i]
        distance = squares + squares[latest] - 2 * (points @ points[latest].T).squeeze(1)
        nearest = torch.minimum(nearest, distance.clamp_min(0.0))
        # A floor keeps the draw defined when every point coincides with a centre.
        chosen[i] = torch.multinomial(nearest + 1e-12, 1, generator=generator)[0]
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    assigned = _nearest(points, centres)
    for _ in range(iterations):
        members = torch.zeros(len(centres), len(points), device=points.device)
        members.scatter_(0, assigned.unsqueeze(0), 1.0)
        counts = members.sum(1, keepdim=True)
        # An empty cluster keeps its centre.
        centres = torch.where(counts > 0, members @ points / counts.clamp_min(1.0), centres)
        assigned = _nearest(points, centres)
    return centres, assigned


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return (points @ centres.T - 0.5 * (centres * centres).sum(1)).argmax(1)


def _faiss(
    points: Tensor, k: int, iterations: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    import faiss

    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=points.device)
    engine = faiss.Kmeans(
        points.shape[1],
        k,
        niter=iterations,
        seed=int(seed.item()),
        min_points_per_centroid=1,
        gpu=points.is_cuda and faiss.get_num_gpus() > 0,
    )
    array = points.cpu().numpy()
    engine.train(array)
    assert engine.centroids is not None
    _, assigned = engine.index.search(array, 1)
    return (
        torch.from_numpy(engine.centroids.copy()).to(points.device),
        torch.from_numpy(assigned[:, 0].copy()).to(points.device),
    )
