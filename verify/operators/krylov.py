"""Largest eigenvalues from below: what a proof may begin with, and what is shown beside one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LOST = 1e-10  # a direction this short has no digits left


def largest_eigenvalue_estimate(
    apply: Callable[[Tensor], Tensor], size: int, like: Tensor, *, batch: int, steps: int
) -> Tensor:
    """Estimates (B,), from below, of the largest eigenvalues of Hermitian maps without negative.

    Power iteration that makes use of all its vectors (Lanczos): the largest eigenvalue of the map
    as seen on their space, from random starts with a fixed seed.

    Args:
        apply: (B, n) to (B, n).
        size: n.
        like: for type and device; may be complex.
        batch: B.
        steps: applications.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(batch, size, generator=generator, dtype=torch.float64, device="cpu")
    vector = vector.to(like)
    vector = vector / vector.norm(dim=1, keepdim=True)
    before, length = torch.zeros_like(vector), vector.new_zeros(batch, 1)
    diagonal, beside = [], []
    for _ in range(min(steps, size)):
        image = apply(vector)
        along = (vector.conj() * image).sum(1, keepdim=True).real
        diagonal.append(along)
        fresh = image - along * vector - length * before
        length = fresh.norm(dim=1, keepdim=True)
        beside.append(length)
        going = length > _LOST * image.norm(dim=1, keepdim=True)
        before, vector = vector, torch.where(going, fresh / length, 0.0)
    inner = torch.diag_embed(torch.cat(diagonal, 1))
    off = torch.diag_embed(torch.cat(beside, 1)[:, :-1].real, offset=-1)
    found: Tensor = torch.linalg.eigvalsh(inner + off)[:, -1]  # of the lower triangle
    return found.clamp_min(0.0)
