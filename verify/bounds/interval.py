"""Interval arithmetic on the canonical graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Input,
    Linear,
    Op,
    Smooth,
)
from greg_cert.verify.graph.rounding import sum_rounding
from greg_cert.verify.graph.smooth import value_range

Interval = tuple[Tensor, Tensor]


def forward_interval(op: Op, operands: Sequence[Interval]) -> Interval:
    """Interval (B, ...) of an operation's output from those of its operands, rounded outwards."""
    low, high = operands[0]
    match op:
        case Conv() | Linear():
            centre, radius = (low + high) / 2, (high - low) / 2
            # Large terms may cancel in the centre, which then says nothing of its rounding.
            share = sum_rounding(op)
            radius = radius + share * torch.maximum(low.abs(), high.abs())
            if isinstance(op, Conv):
                middle = op.apply(centre)
                spread = op.apply(radius, op.weight.abs())
                spread = spread + share * op.bias.abs().reshape(-1, 1, 1)
            else:
                middle = F.linear(centre, op.weight, op.bias)
                spread = F.linear(radius, op.weight.abs(), share * op.bias.abs())
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
        case MaxPool():
            return op.apply(low), op.apply(high)
        case Add():
            return low + operands[1][0], high + operands[1][1]
        case Concat():
            return torch.cat([o[0] for o in operands], 1), torch.cat([o[1] for o in operands], 1)
        case Flatten():
            return low.flatten(1), high.flatten(1)
        case Input():
            raise AssertionError("the input is computed by nothing")
        case _:
            assert_never(op)


def activation_derivative(low: Tensor, high: Tensor, negative_slope: float | Tensor) -> Interval:
    """Interval of an activation's derivative on [low, high]: {slope}, {1} or [slope, 1]."""
    one = torch.ones_like(low)
    flat = negative_slope * one
    # A neuron that is 0 over the whole ball has both signs: its ends must not be reversed. Bounds
    # that are NaN fail every comparison and give the whole interval.
    return torch.where((low >= 0) & (high > 0), one, flat), torch.where(high <= 0, flat, one)


def steepest(low: Tensor, high: Tensor, negative_slope: float | Tensor) -> Tensor:
    """Largest |σ'| of an activation on [low, high]."""
    smallest, largest = activation_derivative(low, high, negative_slope)
    return torch.maximum(smallest.abs(), largest.abs())
