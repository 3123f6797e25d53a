"""What quadratic charges on a layer's output cost its input: diag(D) is at most τ·diag(S).

For an affine layer z = W·u + b, Δzᵀ diag(D) Δz ≤ τ·Δuᵀ diag(S) Δu for every change Δu that is zero
where m is, whenever τ ≥ ‖D^½ W diag(m) S^-½‖₂², m of 0 and 1. The search takes τ from power
iteration, which is from below; a proof takes a Cholesky factorisation of τ·I − M that runs to its
end, M the smaller Gram matrix.

Source: for the rounding of the factorisation, Rump, "Verification of positive definiteness",
BIT Numerical Mathematics 46, 2006: if it runs to its end on A, then A + E is positive definite for
some ‖E‖₂ ≤ γ_{n+1}·trace A.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from greg_cert.verify.graph import Conv, Linear

LARGEST_GRAM = 4096
"""Rows of the largest Gram matrix that is factorised."""

_MARGINS = (1e-4, 1e-3, 1e-2, 1e-1)  # over the estimate from below, tried in turn
_FIRST_STEPS = 10  # of power iteration, from nowhere
_DENSE, _NEAR = 32, 1e-5  # sizes up to which all eigenvalues are found, and how near else
_CHUNK = 2**24  # elements of unit vectors at a time


def applied(op: Conv | Linear, v: Tensor) -> Tensor:
    """W·v for v (B, R, *input shape), without the bias."""
    if isinstance(op, Conv):
        return torch.unflatten(op.apply(v.flatten(0, 1), op.weight), 0, v.shape[:2])
    return v @ op.weight.T


def transposed(op: Conv | Linear, v: Tensor) -> Tensor:
    """Wᵀ·v for v (B, R, *output shape)."""
    if isinstance(op, Conv):
        return torch.unflatten(op.adjoint(v.flatten(0, 1)), 0, v.shape[:2])
    return v @ op.weight


class Prices:
    """τ by power iteration, each call from where the last one ended.

    A lower bound of the true price: for the search alone.

    Attributes:
        steps: of a call.
        last: by node what the last call gave.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps
        self.last: dict[int, Tensor] = {}
        self._vectors: dict[int, Tensor] = {}

    def __call__(
        self, node: int, op: Conv | Linear, charge: Tensor, mask: Tensor, share: Tensor | None
    ) -> Tensor:
        """τ (B, R), differentiable in `charge` and `share`.

        Args:
            node: index of the layer, under which its vector is kept.
            op: the layer.
            charge: (B, R, *output shape) D ≥ 0.
            mask: (B, *input shape) m: 1 for what may move, else 0.
            share: (B, R, *input shape) S > 0; None for ones.
        """
        scale = mask.unsqueeze(1)
        scale = scale if share is None else scale * torch.rsqrt(share)
        steps = self.steps
        v = self._vectors.get(node)
        if v is None or v.shape[:2] != charge.shape[:2]:
            generator = torch.Generator().manual_seed(node)
            noise = torch.rand(
                mask.shape[1:], generator=generator, dtype=torch.float64, device="cpu"
            )
            v = (0.5 + noise).to(mask).expand(*charge.shape[:2], *mask.shape[1:])
            steps = max(steps, _FIRST_STEPS)
        with torch.no_grad():
            for _ in range(steps):
                v = _unit(scale * transposed(op, charge * applied(op, scale * v)))
            self._vectors[node] = v
        tau = (charge * applied(op, scale * v) ** 2).flatten(2).sum(2)
        self.last[node] = tau.detach()
        return tau

    def of(self, members: Tensor) -> Prices:
        """The same for some samples."""
        found = Prices(self.steps)
        found._vectors = {n: v[members] for n, v in self._vectors.items()}
        return found

    def put(self, members: Tensor, other: Prices) -> None:
        """Take over where some samples stand in another."""
        for mine, theirs in ((self._vectors, other._vectors), (self.last, other.last)):
            for node, values in theirs.items():
                if node not in mine:  # the first time all samples are there
                    mine[node] = values
                elif mine[node] is not values:
                    mine[node][members] = values


class ProvenPrices:
    """τ that is proven, in float64; infinite where the layer is too large or nothing was proven."""

    def __call__(
        self, node: int, op: Conv | Linear, charge: Tensor, mask: Tensor, share: Tensor | None
    ) -> Tensor:
        """As `Prices.__call__`, but an upper bound of the true price."""
        scale = mask.unsqueeze(1)
        scale = scale if share is None else scale * torch.rsqrt(share)
        scale = scale.expand(*charge.shape[:2], *mask.shape[1:])
        rows = [
            torch.stack([largest_eigenvalue(op, c, s) for c, s in zip(*pair, strict=True)])
            for pair in zip(charge.sqrt(), scale, strict=True)
        ]
        return torch.stack(rows)


def largest_eigenvalue(op: Conv | Linear, rows: Tensor, columns: Tensor) -> Tensor:
    """A proven upper bound (scalar) of ‖diag(rows)·W·diag(columns)‖₂².

    Args:
        op: the layer.
        rows: (*output shape) nonnegative.
        columns: (*input shape) nonnegative.
    """
    gram = _gram(op, rows, columns)
    if gram is None:
        return rows.new_tensor(torch.inf)
    size, trace = len(gram), float(gram.diagonal().sum())
    if trace == 0.0 or not math.isfinite(trace):
        return rows.new_tensor(trace if trace == 0.0 else torch.inf)
    estimate = max(_from_below(gram), float(gram.diagonal().max()))
    eps = torch.finfo(gram.dtype).eps
    # What building the matrix and factorising it may have rounded off.
    terms = op.weight[0].numel() + op.weight[:, 0].numel()
    lost = (4 * terms + size + 8) * eps
    shifted, level = gram.neg_(), 0.0
    for margin in _MARGINS:
        shifted.diagonal().add_(estimate * (1 + margin) - level)
        level = estimate * (1 + margin)
        _, info = torch.linalg.cholesky_ex(shifted)  # of the lower triangle; NaN fails
        if int(info) == 0:
            return rows.new_tensor(level + lost * (size * level + 2 * trace))
    return rows.new_tensor(trace * (1 + lost * size))


def _gram(op: Conv | Linear, rows: Tensor, columns: Tensor) -> Tensor | None:
    """The smaller of the two Gram matrices of diag(rows)·W·diag(columns), or None if too large."""
    n, m = columns.numel(), rows.numel()
    if min(n, m) > LARGEST_GRAM:
        return None
    if isinstance(op, Linear):
        matrix = rows.unsqueeze(1) * op.weight * columns
        return matrix.T @ matrix if n <= m else matrix @ matrix.T
    size, shape = (n, columns.shape) if n <= m else (m, rows.shape)
    gram = rows.new_empty(size, size)
    chunk = max(1, _CHUNK // max(n, m))
    for start in range(0, size, chunk):
        unit = rows.new_zeros(min(chunk, size - start), size)
        unit.diagonal(start).fill_(1.0)
        v = unit.reshape(1, -1, *shape)
        if n <= m:
            v = columns * transposed(op, rows**2 * applied(op, columns * v))
        else:
            v = rows * applied(op, columns**2 * transposed(op, rows * v))
        gram[start : start + chunk] = v.flatten(2)[0]
    return gram


def _from_below(gram: Tensor) -> float:
    """Nearly the largest eigenvalue, by a few Lanczos steps."""
    if len(gram) <= _DENSE:
        return float(torch.linalg.eigvalsh(gram)[-1])
    start = np.linspace(0.5, 1.5, len(gram))
    matrix = gram.cpu().numpy()
    try:
        found = scipy.sparse.linalg.eigsh(matrix, 1, v0=start, tol=_NEAR, return_eigenvectors=False)
    except scipy.sparse.linalg.ArpackError:  # then the diagonal is what is left
        return 0.0
    return float(found[0])


def _unit(v: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(v.flatten(2), dim=2).clamp_min(torch.finfo(v.dtype).tiny)
    unit: Tensor = v / length.reshape(*v.shape[:2], *[1] * (v.ndim - 2))
    return unit
