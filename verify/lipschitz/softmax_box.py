"""Bounds of the softmax, and of convex combinations weighted by it, over a set of logits."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**24


def softmax_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Element-wise bounds of softmax f for low ≤ f ≤ high, each (B, K).

    p_i is smallest with f_i at its lowest and all others at their highest, and largest the other
    way round: p_i ≥ 1/(1 + Σ_{j≠i} exp(u_j − l_i)).
    """

    def share(own: Tensor, others: Tensor) -> Tensor:
        grid = others.unsqueeze(1).expand(-1, own.shape[1], -1).clone()  # (B, K, K): row i, rival j
        grid.diagonal(dim1=1, dim2=2).copy_(own)
        return (own - grid.logsumexp(2)).exp()

    return share(low, high), share(high, low)


def mixture_box(low: Tensor, high: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Element-wise bounds of Σ_i p_i rows_i over probability vectors p with low ≤ p ≤ high.

    Exact: the mass left over from `low` goes to the largest (or smallest) entries first. Using
    Σ p = 1 is what makes it much tighter than interval arithmetic. From ends (B, K) and rows (K, D)
    to lower and upper bounds (B, D).
    """
    step = max(1, _CHUNK_ELEMENTS // rows.numel())
    parts = [
        (-_largest_mixture(lo, hi, -rows), _largest_mixture(lo, hi, rows))
        for lo, hi in zip(low.split(step), high.split(step), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _largest_mixture(low: Tensor, high: Tensor, rows: Tensor) -> Tensor:
    values, order = rows.sort(dim=0, descending=True)  # (K, D), the same for every sample
    base = low[:, order]  # (B, K, D)
    room = (high - low)[:, order]
    before = room.cumsum(1) - room
    spare = (1.0 - low.sum(1)).clamp_min(0.0).reshape(-1, 1, 1)
    weight = base + torch.minimum(room, (spare - before).clamp_min(0.0))
    return (weight * values).sum(1)
