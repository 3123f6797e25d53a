"""Affine layers as the norms see them: one kind, distinct groups, numbers near 1."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv, Linear

UNIT = torch.finfo(torch.float64).eps / 2
"""The unit roundoff: what one operation may lose."""


def one_kind(op: Conv | Linear) -> Conv:
    """The layer itself, a linear one as a 1×1 convolution of one pixel."""
    if isinstance(op, Conv):
        return op
    return Conv(op.weight[:, :, None, None], op.bias, (op.weight.shape[1], 1, 1))


def as_convolution(op: Conv | Linear) -> Conv:
    """`one_kind` in float64, apart from what its weights were computed from."""
    conv = one_kind(op)
    return replace(conv, weight=conv.weight.detach().double(), bias=conv.bias.detach().double())


def distinct_groups(op: Conv) -> Conv:
    """The convolution with each distinct group of channels once: its norm is the same."""
    if op.groups == 1:
        return op
    weight = op.weight.unflatten(0, (op.groups, -1))
    weight = torch.unique(weight, dim=0)
    groups, outputs = weight.shape[:2]
    channels, *image = op.input_shape
    return replace(
        op,
        weight=weight.flatten(0, 1),
        bias=op.bias.new_zeros(groups * outputs),
        input_shape=(channels // op.groups * groups, *image),
        groups=groups,
    )


def undilated(op: Conv) -> Conv:
    """The same convolution with the gaps of its kernel written out as zeros."""
    if op.dilation == (1, 1):
        return op
    size = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.weight.shape[2:], strict=True)]
    weight = op.weight.new_zeros(*op.weight.shape[:2], *size)
    weight[..., :: op.dilation[0], :: op.dilation[1]] = op.weight
    return replace(op, weight=weight, dilation=(1, 1))


def sides(op: Conv) -> tuple[int, int]:
    """Inputs and outputs of one group."""
    return math.prod(op.input_shape) // op.groups, math.prod(op.output_shape) // op.groups


def absolute_sums(op: Conv) -> tuple[float, float]:
    """The largest absolute row sum and column sum of the matrix, each at most this."""
    like = op.weight
    if math.prod(op.output_shape) == 0:
        return 0.0, 0.0
    rows = op.apply(like.new_ones(1, *op.input_shape), like.abs()).amax()
    columns = op.adjoint(like.new_ones(1, *op.output_shape), like.abs()).amax()
    terms = 2 * (like.numel() + 2) * UNIT
    return float(rows) * (1 + terms), float(columns) * (1 + terms)


def scaled(op: Conv, exponent: int) -> Conv:
    """The layer times 2^exponent, exact but for underflow."""
    return replace(op, weight=op.weight * 2.0 ** max(-1000, min(1000, exponent)))


def gram_map(op: Conv, v: Tensor) -> Tensor:
    """WᵀW·v of vectors v (B, inputs)."""
    image = op.apply(v.unflatten(1, op.input_shape), op.weight)
    return op.adjoint(image, op.weight).flatten(1)


def unscaled(value: float, exponent: int) -> float:
    """A value divided by 2^exponent, rounded up."""
    exponent = max(-1000, min(1000, exponent))
    try:
        found = math.ldexp(value, -exponent)
    except OverflowError:
        return math.inf
    return math.nextafter(found, math.inf) if value > 0 else found


def absolute_bound(op: Conv) -> float:
    """√(‖W‖₁‖W‖∞) ≥ ‖|W|‖₂ ≥ ‖W‖₂, at most this."""
    rows, columns = absolute_sums(op)
    return math.sqrt(rows) * math.sqrt(columns) * (1 + 8 * UNIT)


def largest(weight: Tensor) -> float:
    """Largest absolute weight; 0 for none."""
    return float(weight.abs().amax()) if weight.numel() else 0.0
