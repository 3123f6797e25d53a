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

    No cluster is empty, unless there are fewer than k distinct points.

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
        centres, assigned = _faiss(points, n_clusters, iterations, generator)
    else:
        centres, assigned = _lloyd(points, _plus_plus(points, n_clusters, generator), iterations)
    return _fill_empty(points, centres, assigned)


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
        centres = _means(points, centres, assigned)
        assigned = _nearest(points, centres)
    return centres, assigned


def _means(points: Tensor, centres: Tensor, assigned: Tensor) -> Tensor:
    """Mean of each cluster's points; an empty cluster keeps its centre."""
    if points.shape[0] * centres.shape[0] <= _TORCH_LIMIT:
        members = torch.zeros(len(centres), len(points), device=points.device)
        members.scatter_(0, assigned.unsqueeze(0), 1.0)
        counts, sums = members.sum(1, keepdim=True), members @ points
    else:
        counts = torch.bincount(assigned, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _fill_empty(points: Tensor, centres: Tensor, assigned: Tensor) -> tuple[Tensor, Tensor]:
    """Begin each empty cluster anew at the point furthest from its own centre, if there is one."""
    vacant = (torch.bincount(assigned, minlength=len(centres)) == 0).nonzero().squeeze(1).tolist()
    rounding = 1e-12 * float(points.square().sum(1).max())  # squared error of a mean of copies
    for empty in vacant:
        centres = _means(points, centres, assigned)
        distance = (points - centres[assigned]).square().sum(1)
        furthest = distance.argmax()
        if float(distance[furthest]) <= rounding:
            break
        centres[empty] = points[furthest]
        # A mean has the least squared distance in all, so no cluster loses every point here.
        closer = (points - centres[empty]).square().sum(1) < distance - rounding
        assigned = torch.where(closer, empty, assigned)
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
