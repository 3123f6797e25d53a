"""k-means: greedy k-means++ and Lloyd's iterations in torch on the device, or faiss for pools.

The torch path never makes the host wait for the device, so it can run inside a training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.outliers.finite import check_finite, range_factor

BACKENDS = ("auto", "torch", "faiss")
_TORCH_LIMIT = 2**22  # points × clusters: beyond it, faiss
_TABLE_LIMIT = 2048  # points whose distances to one another are worth a table
_TRIALS = 24  # candidates for each starting centre
_SAME = 1e-12  # squared distance, in squares of the largest coordinate, below which points coincide


def kmeans(
    points: Tensor,
    n_clusters: int,
    *,
    backend: str = "auto",
    iterations: int = 10,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Centres (k, D) and the cluster of each point (N,), minimising the summed squared distance.

    No cluster is empty, unless there are fewer than k distinct points; points closer than a
    millionth of the largest coordinate (from the mean of all) count as one.

    Args:
        points: (N, D) with N ≥ k and D ≥ 1, floating and finite, of any magnitude.
        n_clusters: k ≥ 1.
        backend: `torch`, `faiss`, or `auto` by size.
        iterations: Lloyd's iterations at most.
        generator: source of randomness, on the points' device.
        check: whether to look for NaN and infinity, which makes the host wait for the device; with
            faiss, which ends the process on them, it always does.

    Returns:
        The centres, float32, and the index of each point's centre, long, on the points' device.

    Raises:
        UsageError: for a value out of range, or points that are not finite.

    Source: Arthur and Vassilvitskii, "k-means++", SODA 2007, with the greedy choice among several
        draws that their section 7 proposes.
    """
    if points.ndim != 2 or points.shape[1] == 0 or not points.is_floating_point():
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
    if check or backend == "faiss":
        check_finite(points=points)
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        points = points.detach().float()
        factor = range_factor(points.abs().amax())
        points = points * factor
        if backend == "faiss":
            centres, assigned = _faiss(points, n_clusters, iterations, generator)
            centres, assigned = _fill_empty(points, centres, assigned)
        else:
            centres, assigned = _on_device(
                points, n_clusters, iterations, generator, peek=not points.is_cuda
            )
        return centres / factor, assigned


def _on_device(
    points: Tensor, k: int, iterations: int, generator: torch.Generator | None, *, peek: bool
) -> tuple[Tensor, Tensor]:
    """Centres and clusters; `peek` lets the host look at the data, only to save work."""
    mean = points.mean(0)
    centred = points - mean
    scale = centred.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    centred = centred / scale
    chosen, assigned = _plus_plus(centred, k, generator)
    centres, assigned = _lloyd(centred, centred[chosen], assigned, iterations, peek)
    return centres * scale + mean, assigned


def _plus_plus(points: Tensor, k: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Indices of k starting centres (k,), and the nearest of them to each point (N,).

    Each is the one of several candidates, drawn by their squared distances to the centres before,
    that lowers the sum of these most. Copies of a centre have distance 0 and so are drawn last.
    """
    wide = points.double()  # differences of squares: float32 would lose what is close together
    squares = (wide * wide).sum(1)
    table = _squared(wide, wide, squares, squares) if len(points) <= _TABLE_LIMIT else None

    def distances(index: Tensor) -> Tensor:
        if table is not None:
            return table.index_select(0, index)
        return _squared(wide[index], wide, squares[index], squares)

    trials = min(_TRIALS, len(points))
    ones = torch.ones(len(points), device=points.device)
    logs = torch.rand(k, len(points), device=points.device, generator=generator).log_()
    first = logs[0].argmax(keepdim=True)
    nearest = distances(first)[0]
    chosen = [first]
    for i in range(1, k):
        # The largest of u^(1/w), u uniform, are draws by weight w without replacement.
        drawn = (logs[i] / nearest).topk(trials, sorted=False).indices
        after = distances(drawn)  # (trials, N)
        torch.minimum(after, nearest, out=after)
        best = (after @ ones).argmin(keepdim=True)
        nearest = after.index_select(0, best)[0]
        chosen.append(drawn.index_select(0, best))
    centres = torch.cat(chosen)
    return centres, distances(centres).min(0).indices


def _squared(a: Tensor, b: Tensor, a_squares: Tensor, b_squares: Tensor) -> Tensor:
    """Squared distances (len(a), len(b)) in float32, exactly 0 between copies."""
    out = torch.addmm(b_squares, a, b.T, alpha=-2).add_(a_squares.unsqueeze(1))
    return torch.nn.functional.threshold(out, _SAME, 0.0, inplace=True).float()


def _lloyd(
    points: Tensor, centres: Tensor, assigned: Tensor, iterations: int, peek: bool
) -> tuple[Tensor, Tensor]:
    """Centres and clusters of the last state that leaves no more clusters empty than any before."""
    counts = _counts(assigned, len(centres))
    kept, most = (centres, assigned), (counts > 0).sum()
    for _ in range(iterations):
        before, filled = assigned, counts > 0
        means = _sums(points, assigned, len(centres)) / counts.clamp_min(1.0).unsqueeze(1)
        centres = torch.where(filled.unsqueeze(1), means, centres)
        if not (peek and bool(filled.all())):
            centres, filled = _restart_one(points, centres, assigned, filled)
        offset = torch.where(filled, 0.5 * (centres * centres).sum(1), torch.inf)
        assigned = (centres @ points.T - offset.unsqueeze(1)).max(0).indices
        counts = _counts(assigned, len(centres))
        total = (counts > 0).sum()
        kept = (
            torch.where(total >= most, centres, kept[0]),
            torch.where(total >= most, assigned, kept[1]),
        )
        most = torch.maximum(total, most)
        if peek and torch.equal(assigned, before):
            break
    return kept


def _counts(assigned: Tensor, k: int) -> Tensor:
    ones = torch.ones(len(assigned), device=assigned.device)
    return torch.zeros(k, device=assigned.device).index_add_(0, assigned, ones)


def _sums(points: Tensor, assigned: Tensor, k: int) -> Tensor:
    """Sum of each cluster's points (k, D)."""
    if points.is_cuda and len(points) * k <= _TORCH_LIMIT:  # there index_add_ has no fixed order
        members = torch.zeros(k, len(points), device=points.device)
        return members.scatter_(0, assigned.unsqueeze(0), 1.0) @ points
    return points.new_zeros(k, points.shape[1]).index_add_(0, assigned, points)


def _restart_one(
    points: Tensor, centres: Tensor, assigned: Tensor, filled: Tensor
) -> tuple[Tensor, Tensor]:
    """The first empty cluster moved to the point furthest from its own centre, if there is one."""
    distance, furthest = (points - centres[assigned]).square().sum(1).max(0, keepdim=True)
    first = ~filled & ((~filled).cumsum(0) == 1) & (distance > _SAME)  # (k,)
    return torch.where(first.unsqueeze(1), points[furthest], centres), filled | first


def _fill_empty(points: Tensor, centres: Tensor, assigned: Tensor) -> tuple[Tensor, Tensor]:
    """Begin each empty cluster anew at the point furthest from its own centre, if there is one."""
    rounding = _SAME * float(points.square().sum(1).max())  # squared error of a mean of copies
    counts = _counts(assigned, len(centres))
    for empty in (counts == 0).nonzero().squeeze(1).tolist():
        means = _sums(points, assigned, len(centres)) / counts.clamp_min(1.0).unsqueeze(1)
        centres = torch.where(counts.unsqueeze(1) > 0, means, centres)
        distance = (points - centres[assigned]).square().sum(1)
        furthest = distance.argmax()
        if float(distance[furthest]) <= rounding:
            break
        centres[empty] = points[furthest]
        # A mean has the least squared distance in all, so no cluster loses every point here.
        closer = (points - centres[empty]).square().sum(1) < distance - rounding
        assigned = torch.where(closer, empty, assigned)
        counts = _counts(assigned, len(centres))
    return centres, assigned


def _faiss(
    points: Tensor, k: int, iterations: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=points.device)
    array = points.cpu()
    engine = fit_faiss(array, k, iterations=iterations, seed=int(seed.item()), gpu=points.is_cuda)
    _, assigned = engine.index.search(array.numpy(), 1)
    return (
        torch.from_numpy(engine.centroids.copy()).to(points.device),
        torch.from_numpy(assigned[:, 0].copy()).to(points.device),
    )


def fit_faiss(points: Tensor, k: int, *, iterations: int, seed: int, gpu: bool = True) -> Any:
    """Faiss's k-means, fitted to at most 256 of the points (N, D) a cluster; finite, on the CPU.

    Where there is a GPU that faiss can use, it does so, unless `gpu` forbids it.
    """
    import faiss

    engine = faiss.Kmeans(
        points.shape[1],
        k,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        gpu=gpu and faiss.get_num_gpus() > 0,
    )
    engine.train(points.numpy())
    return engine
