"""Interval arithmetic on the canonical graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Activation, Affine, Op, Smooth, Wiring
from greg_cert.verify.graph.rounding import sum_rounding
from greg_cert.verify.graph.smooth import slope_range, value_range

Interval = tuple[Tensor, Tensor]


def forward_interval(op: Op, operands: Sequence[Interval]) -> Interval:
    """Interval (B, ...) of an operation's output from those of its operands, rounded outwards."""
    low, high = operands[0]
    match op:
        case Affine():
            centre, radius = (low + high) / 2, (high - low) / 2
            # Large terms may cancel in the centre, which then says nothing of its rounding.
            share = sum_rounding(op)
            radius = radius + share * torch.maximum(low.abs(), high.abs())
            middle, spread = op.apply(centre), op.absolute(radius, share)
            return middle - spread, middle + spread
        case Activation():
            first, last = op.apply(low), op.apply(high)
            if op.least_slope >= 0:
                return first, last
            # Least at the corner, where both signs occur; NaN stays NaN.
            least = torch.minimum(first, last)
            least = torch.where((low < 0) & (high > 0), least.clamp(max=0.0), least)
            return least, torch.maximum(first, last)
        case Smooth(kind):
            return value_range(kind, low, high)
        case MaxPool() | Wiring():  # which grow with all that they read
            return op.apply(*(o[0] for o in operands)), op.apply(*(o[1] for o in operands))
        case _:
            assert_never(op)


def all_finite(boxes: Iterable[Interval]) -> Tensor:
    """Samples (B,) all of whose intervals are finite; a single True for no intervals."""
    parts = [(low.isfinite() & high.isfinite()).flatten(1).all(1) for low, high in boxes]
    return torch.stack(parts).all(0) if parts else torch.tensor(True)


def activation_derivative(low: Tensor, high: Tensor, negative_slope: float | Tensor) -> Interval:
    """Interval of an activation's derivative on [low, high]: {slope}, {1} or [slope, 1]."""
    one = torch.ones_like(low)
    flat = negative_slope * one
    # A neuron that is 0 over the whole ball has both signs: its ends must not be reversed. Bounds
    # that are NaN fail every comparison and give the whole interval.
    return torch.where((low >= 0) & (high > 0), one, flat), torch.where(high <= 0, flat, one)


def steepest(op: Activation | Smooth, low: Tensor, high: Tensor) -> Tensor:
    """Largest |σ'| on [low, high], at most this."""
    if isinstance(op, Smooth):
        smallest, largest = slope_range(op.kind, low, high)
    else:
        smallest, largest = activation_derivative(low, high, op.negative_slope)
    return torch.maximum(smallest.abs(), largest.abs())
