"""Gram matrices of small layers as they are, for many scalings of one layer at a time.

As `band` does for large convolutions: what it proves holds but for what the factorisation rounds
off, for which callers allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv, Linear

_LARGEST = 512  # rows of the Gram matrix: above, a band is cheaper


def dense_matrix(op: Conv | Linear) -> Tensor | None:
    """The linear part (outputs, inputs) of a layer that is small enough, else None."""
    matrix = op.matrix if isinstance(op, Conv) else op.weight
    return None if matrix is None or min(matrix.shape) > _LARGEST else matrix


def dense_grams(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The smaller Gram matrices (B, n, n) of diag(rows)·matrix·diag(columns).

    Of a matrix (outputs, inputs), for rows (B, outputs) and columns (B, inputs).
    """
    scaled = rows.unsqueeze(2) * matrix * columns.unsqueeze(1)
    if len(matrix) > matrix.shape[1]:
        scaled = scaled.transpose(1, 2)
    return scaled @ scaled.transpose(1, 2)


def levels_above(grams: Tensor, estimates: Tensor, margins: Sequence[float]) -> Tensor:
    """For each matrix the first estimate·(1 + margin) (B,) that is proven above it, else inf."""
    found = torch.full_like(estimates, math.inf)
    left = torch.arange(len(grams), device=grams.device)
    for margin in margins:
        level = estimates[left] * (1 + margin)
        shifted = -grams[left]
        shifted.diagonal(dim1=1, dim2=2).add_(level.unsqueeze(1))
        factor, info = torch.linalg.cholesky_ex(shifted)
        proven = (info == 0) & factor.isfinite().flatten(1).all(1)
        found[left[proven]] = level[proven]
        left = left[~proven]
    return found
