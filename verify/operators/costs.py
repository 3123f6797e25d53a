"""About what the norm of a layer takes to prove, told before it is begun."""

from __future__ import annotations

import math

from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.operators.band import Band
from greg_cert.verify.operators.gram import LARGEST_GRAM, gram_entries
from greg_cert.verify.operators.layers import as_convolution
from greg_cert.verify.operators.symbol import symbol_operations

_ITERATION = 360.0  # applications of a layer or its adjoint, of the estimate from below


def iteration_operations(op: Conv | Linear) -> float:
    """Of `norm_from_below`, about, in additions and multiplications."""
    return _ITERATION * _applied(as_convolution(op))


def norm_operations(op: Conv | Linear) -> float:
    """Of `operator_norm`, about, in additions and multiplications."""
    conv = as_convolution(op)
    band = Band.of(conv)
    if conv.groups == 1 and band.fits:
        between = conv.output_shape if band.by_inputs else conv.input_shape
        pairs = conv.weight[0, 0].numel() ** 2 / 2  # of taps, a product in each window
        return 2.0 * pairs * math.prod(between) * band.shape[0] ** 2 + band.work
    if gram_entries(conv) > LARGEST_GRAM:
        return symbol_operations(conv)
    side = math.sqrt(gram_entries(conv))
    return 2.0 * side * _applied(conv) + side**3


def _applied(op: Conv) -> float:
    return 2.0 * op.weight.numel() * math.prod(op.output_shape[1:])
