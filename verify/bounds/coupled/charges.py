"""What quadratic charges on a layer's output cost its input: diag(D) is at most τ·diag(S).

For an affine layer z = W·u + b, Δzᵀ diag(D) Δz ≤ τ·Δuᵀ diag(S) Δu for every change Δu that is zero
where m is, whenever τ ≥ ‖D^½ W diag(m) S^-½‖₂², m of 0 and 1. The search takes τ from power
iteration, which is from below; a proof takes a Cholesky factorisation of τ·I − M that runs to its
end, M the Gram matrix with the cheaper band.

Source: for the rounding of the factorisation, Rump, "Verification of positive definiteness",
BIT Numerical Mathematics 46, 2006: if it runs to its end on A, then A + E is positive definite for
some ‖E‖₂ ≤ γ_{n+1}·trace A.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.neurons import shaped
from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.operators.band import Band, gram_band, level_above
from greg_cert.verify.operators.dense import dense_grams, dense_matrix, levels_above
from greg_cert.verify.operators.krylov import largest_eigenvalue_estimate
from greg_cert.verify.operators.layers import as_convolution

_CHUNK = 2**23  # numbers that scaled matrices hold at a time
_STEPS = 30  # of the iteration that finds where a proof begins
_MARGINS = (3e-4, 3e-3, 3e-2)  # over the estimate from below, tried in turn
_FIRST_STEPS = 6  # of power iteration, from nowhere
_VECTORS, _SMOOTHING = 4, 0.008  # of the block, and relative to the largest Ritz value


class Prices:
    """τ by block power iteration, each call from where the last one ended.

    Where a search ends, the largest eigenvalues are nearly equal: the derivative of the largest
    alone jumps from one to another at each step, and the search with it. Therefore the mean of the
    block's Ritz values, weighted by their softmax, which is smooth. It is below the true price: for
    the search alone.

    Attributes:
        steps: of a call.
        last: by node the largest Ritz value of the last call.
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
        if v is None:
            v = self._first(node, charge.shape[:2], mask)
            steps = max(steps, _FIRST_STEPS)
        with torch.no_grad():
            # Any scale serves here, and float32 has no room for the squares of small charges.
            largest = charge.flatten(2).amax(2).clamp_min(torch.finfo(charge.dtype).tiny)
            weight = (charge / shaped(largest, charge)).unsqueeze(2)
            for _ in range(steps):
                v = _orthonormal(_mapped(op, weight, scale, v))
            values, v = _ritz(_applied(op, scale, v), weight, v)
            self._vectors[node] = v
            self.last[node] = largest * values.amax(2)
            width = _SMOOTHING * values.amax(2, keepdim=True)
            part = (values / width.clamp_min(torch.finfo(width.dtype).tiny)).softmax(2)
        each = (charge.unsqueeze(2) * _applied(op, scale, v) ** 2).flatten(3).sum(3)
        return (part * each).sum(2)

    def _first(self, node: int, rows: torch.Size, mask: Tensor) -> Tensor:
        """Where the iteration begins, (B, R, V, *input shape); the same for all samples."""
        shape = mask.shape[1:]
        generator = torch.Generator().manual_seed(node)
        size = (_VECTORS, *shape)
        noise = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu")
        noise[1:] -= 0.5
        noise = noise[: shape.numel()]
        return noise.to(mask).expand(*rows, *noise.shape)

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
        """As `Prices.__call__`, but an upper bound of the true price, from the CPU."""
        scale = mask.unsqueeze(1)
        scale = scale if share is None else scale * torch.rsqrt(share)
        scale = scale.expand(*charge.shape[:2], *mask.shape[1:])
        rows, columns = charge.sqrt().flatten(0, 1), scale.flatten(0, 1)
        matrix = dense_matrix(op)
        if matrix is None:
            pairs = zip(rows, columns, strict=True)
            found = charge.new_tensor([largest_eigenvalue(op, *pair) for pair in pairs])
        else:
            found = _dense_eigenvalues(op, matrix, rows.flatten(1), columns.flatten(1))
        return torch.unflatten(found, 0, charge.shape[:2])


def _dense_eigenvalues(op: Conv | Linear, matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`largest_eigenvalue` (B,) of rows (B, outputs) and columns (B, inputs), in one go."""
    found = []
    chunk = max(1, _CHUNK // matrix.numel())
    for part in zip(rows.split(chunk), columns.split(chunk), strict=True):
        grams = dense_grams(matrix, *part)
        size, traces = grams.shape[1], grams.diagonal(dim1=1, dim2=2).sum(1)
        usable = grams.isfinite().flatten(1).all(1)
        # Divided by its trace, so that the iteration is about numbers near 1.
        divided = torch.where(usable & (traces > 0), 1 / traces, 0.0).reshape(-1, 1, 1) * grams
        divided = divided.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

        def apply(v: Tensor, divided: Tensor = divided) -> Tensor:
            return (divided @ v.unsqueeze(2)).squeeze(2)

        steps = 2 * _STEPS  # which cost little here
        below = largest_eigenvalue_estimate(apply, size, grams, batch=len(grams), steps=steps)
        largest = grams.diagonal(dim1=1, dim2=2).amax(1)
        levels = levels_above(grams, torch.maximum(traces * below, largest), _MARGINS)
        found.append(torch.where(usable, _proven(op, size, levels, traces), torch.inf))
    return torch.cat(found)


def largest_eigenvalue(op: Conv | Linear, rows: Tensor, columns: Tensor) -> float:
    """A proven upper bound of ‖diag(rows)·W·diag(columns)‖₂².

    Rows (*output shape) and columns (*input shape) are nonnegative.
    """
    conv = as_convolution(op)
    rows, columns = rows.reshape(conv.output_shape), columns.reshape(conv.input_shape)
    band = Band.of(conv)
    if not band.fits:
        return math.inf
    gram = gram_band(conv, band, rows, columns)
    diagonal = gram[:, 0]
    trace = diagonal.sum()
    if float(trace) == 0.0:
        return 0.0
    if not bool(gram.isfinite().all()):
        return math.inf
    largest = float(diagonal.max())  # by which the iteration is about numbers near 1

    def apply(v: Tensor) -> Tensor:
        scaled = columns * v.reshape(1, *conv.input_shape)
        image = rows**2 * conv.apply(scaled, conv.weight) / largest
        return (columns * conv.adjoint(image)).flatten(1)

    below = largest_eigenvalue_estimate(apply, columns.numel(), rows, batch=1, steps=_STEPS)
    estimate = largest * max(float(below), 1.0)
    level = trace.new_tensor(level_above(gram, estimate, _MARGINS))
    return float(_proven(op, len(gram), level, trace))


def _proven(op: Conv | Linear, size: int, levels: Tensor, traces: Tensor) -> Tensor:
    """Upper bounds of the largest eigenvalues of Gram matrices of this size.

    Levels above which a factorisation found none, and what building the matrices and factorising
    them may have rounded off; where there is no level, the traces.
    """
    terms = op.weight[0].numel() + op.weight[:, 0].numel()
    lost = (4 * terms + size + 8) * torch.finfo(traces.dtype).eps
    proven = levels + lost * (size * levels + 2 * traces)
    found = torch.where(levels.isfinite(), proven, traces * (1 + lost * size))
    return torch.where(traces == 0, traces, found)


def _applied(op: Conv | Linear, scale: Tensor, v: Tensor) -> Tensor:
    """W·diag(scale)·v of blocks v (B, R, V, *input shape)."""
    image = op.apply((scale.unsqueeze(2) * v).flatten(0, 2), op.weight)
    return torch.unflatten(image, 0, v.shape[:3])


def _mapped(op: Conv | Linear, weight: Tensor, scale: Tensor, v: Tensor) -> Tensor:
    """The Gram matrix, times blocks v (B, R, V, *input shape)."""
    back = op.adjoint((weight * _applied(op, scale, v)).flatten(0, 2))
    return scale.unsqueeze(2) * torch.unflatten(back, 0, v.shape[:3])


def _orthonormal(v: Tensor) -> Tensor:
    q = torch.linalg.qr(v.flatten(3).transpose(2, 3).nan_to_num())[0]
    found: Tensor = q.transpose(2, 3).reshape(v.shape)
    return found


def _ritz(y: Tensor, weight: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values (B, R, V) at least 0 and vectors of orthonormal v, whose images are y."""
    y = y.flatten(3)
    gram = ((weight.flatten(3) * y) @ y.transpose(2, 3)).nan_to_num()
    values, turn = torch.linalg.eigh(gram)
    return values.clamp_min(0.0), (turn.transpose(2, 3) @ v.flatten(3)).reshape(v.shape)
