"""Proven upper bounds of the operator norm of one affine layer, found once a set of weights.

For ℓ∞ the norm is the largest absolute row sum. For ℓ2 it is the layer's own Gram matrix where that
fits, zero padding and stride as they are, and elsewhere the symbol of the infinite convolution of
which the layer is a part; never more than √(‖W‖₁‖W‖∞). All in float64, rounding allowed for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.norms import check_norm
from greg_cert.verify.operators.band import Band
from greg_cert.verify.operators.gram import LARGEST_GRAM, band_norm, gram_entries, gram_norm
from greg_cert.verify.operators.krylov import largest_eigenvalue_estimate
from greg_cert.verify.operators.layers import (
    absolute_bound,
    absolute_sums,
    as_convolution,
    gram_map,
    largest,
    scaled,
    unscaled,
)
from greg_cert.verify.operators.symbol import symbol_norm

_KEPT = 4096  # norms, a number each
_STARTS, _STEPS = 3, 60  # of the iteration from below
_found: dict[bytes, float] = {}


def operator_norm(op: Conv | Linear, norm: float = 2.0) -> float:
    """‖W‖ of a layer from ℓ_norm to ℓ_norm, at most this; deterministic, kept by the weights.

    For ℓ∞ exact. For ℓ2 within 0.4 % where the band of the smaller Gram matrix `band.Band.fits`
    (32 channels of 16×16 under a 3×3 kernel, and twice that) or, with groups, those of all distinct
    ones have at most `gram.LARGEST_GRAM` entries together; where
    windows do not overlap (1×1, kernel = stride, linear layers) those of one window count.
    Elsewhere near it on maps much larger than the kernel, or √(‖W‖₁‖W‖∞) for huge linear layers.

    Args:
        op: a layer of the graph, of any floating type.
        norm: 2 or inf.

    Returns:
        The bound; inf for weights that are not finite.
    """
    check_norm(norm)
    conv = as_convolution(op)
    key = _digest(conv, norm)
    if key not in _found:
        while len(_found) >= _KEPT:
            del _found[next(iter(_found))]
        with torch.no_grad():
            _found[key] = _operator_norm(conv, norm)
    return _found[key]


def _operator_norm(op: Conv, norm: float) -> float:
    size = largest(op.weight)
    if not math.isfinite(size):
        return math.inf
    if norm == math.inf:
        return absolute_sums(op)[0]
    first = -math.frexp(size)[1]
    op = scaled(op, first)
    coarse = absolute_bound(op)
    if coarse == 0:
        return 0.0
    # Again by what is read of the weights, so that all that follows is about numbers near 1.
    second = -math.frexp(coarse)[1]
    op, coarse = scaled(op, second), math.ldexp(coarse, second)
    return unscaled(unscaled(min(coarse, _exact(op)(op)), second), first)


def _exact(op: Conv) -> Callable[[Conv], float]:
    """The way to the norm of a layer that is nearest to it."""
    if _reads_apart(op):
        return symbol_norm
    if op.groups == 1 and Band.of(op).fits:
        return band_norm
    return gram_norm if gram_entries(op) <= LARGEST_GRAM else symbol_norm


def _reads_apart(op: Conv) -> bool:
    """Whether windows share no pixel and one is whole: then the symbol is constant and exact."""
    for size, count, stride, padding, dilation in zip(
        op.input_shape[1:], op.weight.shape[2:], op.stride, op.padding, op.dilation, strict=True
    ):
        width = dilation * (count - 1) + 1
        first = -(-padding // stride) * stride - padding  # where a window begins in the image
        if width > stride or first + width > size:
            return False
    return True


def _digest(op: Conv, norm: float) -> bytes:
    windows = (op.stride, op.padding, op.dilation, op.groups)
    settings = (op.weight.shape, op.input_shape, *windows, norm)
    weights = op.weight.contiguous().cpu().numpy().tobytes()
    return hashlib.blake2b(weights + repr(settings).encode(), digest_size=32).digest()


@torch.no_grad()
def norm_from_below(op: Conv | Linear) -> float:
    """‖W‖₂ of a layer by power iteration from several starts: near the truth, and NOT a bound."""
    op = as_convolution(op)
    size = largest(op.weight)
    if size == 0 or not math.isfinite(size):
        return size
    exponent = -math.frexp(size)[1]
    op = scaled(op, exponent)
    found = largest_eigenvalue_estimate(
        partial(gram_map, op), math.prod(op.input_shape), op.weight, batch=_STARTS, steps=_STEPS
    )
    return unscaled(math.sqrt(float(found.amax())), exponent)


def row_norms(op: Conv | Linear, mask: Tensor) -> Tensor:
    """√(Σ_j w_ij²·m_j²) (B, *output shape), at least: how far a ball moves each output.

    The mask m (B, *input shape) holds factors of the inputs.
    """
    found = op.apply(mask**2, op.weight**2)
    terms = (op.weight[0].numel() + 8) * torch.finfo(op.weight.dtype).eps
    return found.clamp_min(0.0).sqrt() * (1 + terms)  # a fast convolution may round below zero
