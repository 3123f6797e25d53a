"""Interval backward pass: boxes around ∂S/∂v for every node v, over a whole ball."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.bounds.crown import operand_rows
from greg_cert.verify.bounds.interval import Interval, activation_derivative
from greg_cert.verify.graph.max_pool import MaxPool, share_range
from greg_cert.verify.graph.ops import Activation, Affine, Computed, Graph, Linear, Smooth, Wiring
from greg_cert.verify.graph.rounding import sum_rounding
from greg_cert.verify.graph.smooth import slope_range
from greg_cert.verify.lipschitz.score_box import ScoreBox


def adjoint_boxes(
    graph: Graph, preactivations: Mapping[int, Interval], top: ScoreBox
) -> dict[int, Interval]:
    """Boxes (B, *shape) that hold −∂S/∂v for all points of each ball, from that of −∂S/∂f on top.

    Of each activation node the pre-activations hold its input's (lower, upper) over the ball.
    """
    last = len(graph.nodes) - 1
    boxes: dict[int, Interval] = {last: (top.low, top.high)}
    for i, node in reversed(graph.computed):
        if i not in boxes:
            continue
        if i == last and isinstance(node.op, Linear):
            parts = [top.head_box(node.op)]
        else:
            parts = _back(graph, node, boxes[i], preactivations.get(i))
        for j, part in zip(node.inputs, parts, strict=True):
            if j in boxes:
                part = (boxes[j][0] + part[0], boxes[j][1] + part[1])
            boxes[j] = part
    return boxes


def _back(graph: Graph, node: Computed, box: Interval, bounds: Interval | None) -> list[Interval]:
    """Boxes of the operands' adjoints from the box of the result's."""
    low, high = box
    match node.op:
        case Affine() as op:
            centre, spread = (low + high) / 2, (high - low) / 2
            share = sum_rounding(op, backwards=True)
            spread = spread + share * torch.maximum(low.abs(), high.abs())
            middle, width = op.adjoint(centre), op.adjoint(spread, op.weight.abs())
            return [(middle - width, middle + width)]
        case Activation() as op:
            assert bounds is not None
            smallest, largest = activation_derivative(*bounds, op.negative_slope)
            if op.least_slope < 0:
                return [_product(box, (smallest, largest))]
            # Derivatives are nonnegative, so the sign of each end picks the factor.
            return [(_scaled(low, smallest, largest, -1), _scaled(high, smallest, largest, 1))]
        case Smooth(kind):
            assert bounds is not None
            return [_product(box, slope_range(kind, *bounds))]
        case MaxPool() as op:
            assert bounds is not None
            least, most = share_range(op, *bounds)
            ends = [
                op.spread(_scaled(end.unsqueeze(-3), least, most, sign).unbind(-3))
                for end, sign in ((low, -1), (high, 1))
            ]
            outward = torch.maximum(-low, high).clamp_min(0.0).expand(op.size, *low.shape)
            lost = op.overlap * torch.finfo(low.dtype).eps * op.spread(outward)
            return [(ends[0] - lost, ends[1] + lost)]
        case Wiring():
            lows, highs = (operand_rows(graph, node, end, 1) for end in box)
            return list(zip(lows, highs, strict=True))
        case _:
            assert_never(node.op)


def _product(one: Interval, other: Interval) -> Interval:
    """Products of numbers of either sign: each end is one of the four of the ends."""
    products = torch.stack([end * factor for end in one for factor in other])
    return products.amin(0), products.amax(0)


def _scaled(end: Tensor, smallest: Tensor, largest: Tensor, direction: int) -> Tensor:
    """The end of {d·a : smallest ≤ d ≤ largest} furthest in `direction`."""
    outward = end * direction > 0
    return end * largest.where(outward, smallest)
