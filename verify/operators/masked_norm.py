"""Upper bounds of the operator norm of a layer whose rows and columns are scaled by masks.

For ℓ∞ the norm is exact (the largest absolute row sum). For ℓ2 it is an upper bound: Gram iteration
where the layer is small enough to write out, else √(‖M‖₁‖M‖∞). Power iteration would give a lower
bound and is not used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import LARGEST_MATRIX, Conv, Linear

_CHUNK_ELEMENTS = 2**24
_GRAM_STEPS = 7


class MaskedNorm:
    """Norm bounds of one affine layer under per-sample masks."""

    def __init__(self, op: Conv | Linear) -> None:
        self._op = op
        matrix = op.weight if isinstance(op, Linear) else op.matrix
        self._matrix = None if matrix is None or matrix.numel() > LARGEST_MATRIX else matrix

    def bound(self, columns: Tensor, rows: Tensor, norm: float) -> Tensor:
        """‖diag(rows) W diag(columns)‖ from ℓ_norm to ℓ_norm, at most this, for each sample.

        Args:
            columns: (B, *input shape) nonnegative factors of the inputs.
            rows: (B, *output shape) nonnegative factors of the outputs.
            norm: 2.0 or inf.

        Returns:
            (B,)
        """
        op = self._op
        row_sums = (rows * op.apply(columns, op.weight.abs())).flatten(1).amax(1)
        if norm == math.inf:
            return row_sums
        column_sums = (columns * op.adjoint(rows, op.weight.abs())).flatten(1).amax(1)
        bound = row_sums.sqrt() * column_sums.sqrt()  # the product may underflow
        if self._is_disjoint_depthwise():
            # Each output reads pixels that no other reads: a block-diagonal matrix of single rows.
            squared = op.apply(columns**2, op.weight**2)
            bound = torch.minimum(bound, (rows**2 * squared).flatten(1).amax(1).sqrt())
        elif self._matrix is not None:
            bound = torch.minimum(bound, self._gram_bound(columns.flatten(1), rows.flatten(1)))
        return bound

    def _is_disjoint_depthwise(self) -> bool:
        op = self._op
        if not isinstance(op, Conv) or op.weight.shape[1] != 1 or op.groups != len(op.weight):
            return False
        spans = [d * (k - 1) for d, k in zip(op.dilation, op.weight.shape[2:], strict=True)]
        return all(s < t for s, t in zip(spans, op.stride, strict=True))

    def _gram_bound(self, columns: Tensor, rows: Tensor) -> Tensor:
        assert self._matrix is not None
        step = max(1, _CHUNK_ELEMENTS // self._matrix.numel())
        parts = [
            spectral_norm_bound(r.unsqueeze(2) * self._matrix * c.unsqueeze(1))
            for c, r in zip(columns.split(step), rows.split(step), strict=True)
        ]
        return torch.cat(parts)


def spectral_norm_bound(matrices: Tensor) -> Tensor:
    """Upper bound (B,) of the spectral norms of matrices (B, m, n), by Gram iteration.

    ‖M‖₂^(2^t) = ‖G_t‖₂ ≤ ‖G_t‖_F for G_1 = MMᵀ and G_{t+1} = G_t²; each step takes the square root
    of the ratio to the truth. Source: Delattre et al., "Efficient Bound of Lipschitz Constant for
    Convolutional Layers by Gram Iteration", ICML 2023, theorem 1.
    """
    transposed = matrices.shape[1] > matrices.shape[2]
    tiny = torch.finfo(matrices.dtype).tiny
    largest = matrices.abs().amax((1, 2)).clamp_min(tiny)
    unit = matrices / largest.reshape(-1, 1, 1)  # or squares could underflow to a bound of zero
    gram = unit.mT @ unit if transposed else unit @ unit.mT
    log_scale = torch.zeros(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(_GRAM_STEPS):
        size = torch.linalg.matrix_norm(gram).clamp_min(tiny)
        gram = gram / size.reshape(-1, 1, 1)  # keeps the powers in range
        gram = gram @ gram
        log_scale = 2 * (log_scale + size.log())
    size = torch.linalg.matrix_norm(gram).clamp_min(tiny)
    exponent = 0.5 / 2**_GRAM_STEPS
    # The rounding of a few hundred additions a step is far below this slack.
    bound: Tensor = (exponent * (log_scale + size.log())).exp() * largest
    return bound * (1 + 1e-9)
