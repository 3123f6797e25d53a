"""Proven upper bounds of largest eigenvalues, and the norm of a layer by its own Gram matrix.

If the Cholesky factorisation of λI − G runs to completion in floating point, λI − G is no further
from being positive than its rounding, about n·ε·trace: then λ plus that bounds every eigenvalue.
Source: Rump, "Verification of positive definiteness", BIT 46, 2006.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv
from greg_cert.verify.operators.band import Band, gram_band, level_above
from greg_cert.verify.operators.krylov import largest_eigenvalue_estimate
from greg_cert.verify.operators.layers import UNIT, absolute_bound, distinct_groups, gram_map, sides

LARGEST_GRAM = 2**24  # entries, of all groups together: a side of 4096

_UNDERFLOW = 1e-280  # of a whole factorisation of numbers near 1
_STEPS = 40  # of the iteration that finds λ
_SHARES = (1e-8, 1e-5, 1e-3, 4e-3)  # above the estimate, tried in turn
_COARSE = (0.02, 0.1)  # beyond them
_EXPENSIVE = 4e9  # multiplications of a factorisation
_ELEMENTS = 2**22  # of the vectors that a layer is applied to at once


def gram_entries(op: Conv) -> int:
    """Entries of the Gram matrices of all distinct groups."""
    op = distinct_groups(op)
    return op.groups * min(sides(op)) ** 2


def gram_norm(op: Conv) -> float:
    """‖W‖₂ of a layer with weights of size about 1, at most this, by its Gram matrix.

    Costs the layer and its adjoint on every unit vector of the smaller side, and a Cholesky
    factorisation; three matrices of `gram_entries` live at once.
    """
    op = distinct_groups(op)
    inputs, outputs = sides(op)
    by_inputs = inputs <= outputs
    size, shape = (inputs, op.input_shape) if by_inputs else (outputs, op.output_shape)
    gram = op.weight.new_empty(op.groups, size, size)
    step = max(1, _ELEMENTS // (op.groups * max(inputs, outputs)))
    for rows in torch.arange(size, device=gram.device).split(step):
        units = gram.new_zeros(len(rows), op.groups, size)
        units[torch.arange(len(rows), device=gram.device), :, rows] = 1.0  # one in each group
        units = units.reshape(len(rows), *shape)
        if by_inputs:
            image = op.adjoint(op.apply(units, op.weight), op.weight)
        else:
            image = op.apply(op.adjoint(units, op.weight), op.weight)
        gram[:, rows] = image.reshape(len(rows), op.groups, size).transpose(0, 1)
    return math.sqrt(largest_eigenvalue(gram, _error(op, by_inputs))) * (1 + 2 * UNIT)


def band_norm(op: Conv) -> float:
    """As `gram_norm`, of a layer without groups by the band of its Gram matrix; inf if it fails."""
    band = Band.of(op)
    rows, columns = (op.weight.new_ones(shape) for shape in (op.output_shape, op.input_shape))
    gram = gram_band(op, band, rows, columns)

    below = largest_eigenvalue_estimate(
        partial(gram_map, op), columns.numel(), op.weight, batch=1, steps=_STEPS
    )
    estimate = max(float(below), float(gram[:, 0].max()))
    # Where a factorisation is expensive, the first levels, which mostly fail, are left out.
    shares = _SHARES if band.work < _EXPENSIVE else _SHARES[2:]
    level = level_above(gram, estimate, (*shares, *_COARSE))
    unit = (band.size + 2) * UNIT
    lost = 2 * UNIT + band.size * unit / (1 - unit)
    square = level * (1 + lost) + _error(op, band.by_inputs) + _UNDERFLOW
    return math.sqrt(square) * (1 + 2 * UNIT)


def _error(op: Conv, by_inputs: bool) -> float:
    """Spectral distance of a Gram matrix from its exact one.

    On unit vectors the first of the two steps is exact; the second sums so many products.
    """
    terms = op.weight[:, 0].numel() // op.groups if by_inputs else op.weight[0].numel()
    return (terms + 2) * UNIT * absolute_bound(op) ** 2


def largest_eigenvalue(grams: Tensor, error: float) -> float:
    """An upper bound of the eigenvalues of some matrices, within 0.5 % of the largest.

    Args:
        grams: (B, n, n) Hermitian, in float64 or complex128, nonnegative but for rounding, of size
            about 1. They are overwritten.
        error: spectral distance between each of them and the matrix that is meant.
    """
    count, size = grams.shape[:2]

    def apply(v: Tensor) -> Tensor:
        return (grams @ v.unsqueeze(2)).squeeze(2)

    estimate = float(
        largest_eigenvalue_estimate(apply, size, grams, batch=count, steps=_STEPS).amax()
    )
    diagonal = grams.diagonal(dim1=1, dim2=2).real.clone()
    negated = grams.neg_()

    def below(level: float, rows: Tensor) -> Tensor:
        """level·I − G, of some."""
        found = negated if len(rows) == count else negated[rows]
        found.diagonal(dim1=1, dim2=2).copy_(level - diagonal[rows])
        return found

    left = torch.arange(count, device=grams.device)
    for share in (*_SHARES, None, *_SHARES):
        if share is None:
            least = torch.linalg.eigvalsh(below(estimate, left))[:, 0]
            estimate = max(estimate, float((estimate - least).amax()))
            continue
        level = estimate * (1 + share)
        factor, info = torch.linalg.cholesky_ex(below(level, left))
        whole = (info == 0) & factor.diagonal(dim1=1, dim2=2).real.isfinite().all(1)
        left = left[~whole]
        if len(left) == 0:
            unit = (4 if grams.is_complex() else 1) * (size + 2) * UNIT
            lost = 2 * UNIT + size * unit / (1 - unit)  # of the diagonal, of the factorisation
            return level * (1 + lost) + error + _UNDERFLOW
    return float(diagonal.sum(1).amax()) * (1 + 2 * size * UNIT) + size * error + _UNDERFLOW
