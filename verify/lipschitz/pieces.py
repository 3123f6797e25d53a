"""Nodes that are affine functions of an earlier one, or elementwise maxima of some.

A node whose rows are, wherever it is differentiable, convex combinations of those of affine maps
A_1 … A_m of a source has a Jacobian of norm ≤ ‖[A_1; …; A_m]‖ there. That is one operator for I + W
of a linear residual branch, and 1 for a max pool, whose tree of ReLU costs a factor of 1 + √2 a
level otherwise: b + ReLU(a − b) is a or b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Graph,
    Node,
    Smooth,
)
from greg_cert.verify.operators.layers import one_kind, undilated

_MOST = 16  # maps a node
_LARGEST_SUM = 2**22  # weights of a sum of layers with different groups


@dataclass(frozen=True)
class Pieces:
    """The maps that a node is made of, as convolutions of a source node; biases do not matter."""

    source: int
    maps: tuple[Conv, ...]


def affine_pieces(graph: Graph) -> list[Pieces | None]:
    """For every node what it is of an earlier one, where that says more than its own operation."""
    found: list[Pieces | None] = [None]
    for _, node in graph.computed:
        match node.op:
            case Affine():
                found.append(_composed(one_kind(node.op), node.inputs[0], found))
            case Add():
                found.append(_maximum(graph, node, found) or _sum(graph, node, found))
            case Activation() | Smooth() | MaxPool() | Concat() | Flatten():
                found.append(None)
            case _:
                assert_never(node.op)
    return found


def together(maps: Sequence[Conv]) -> Conv | None:
    """[A_1; …; A_m] as one convolution, or None where their shapes do not fit."""
    if len(maps) == 1:
        return maps[0]
    aligned = _aligned(maps)
    if aligned is None:
        return None
    weights = torch.cat([m.weight.unflatten(0, (m.groups, -1)) for m in aligned], 1)
    return _like(aligned[0], weights.flatten(0, 1))


def _like(op: Conv, weight: Tensor) -> Conv:
    return Conv(
        weight, weight.new_zeros(len(weight)), op.input_shape, op.stride, op.padding, op.dilation,
        op.groups,
    )  # fmt: skip


def _composed(op: Conv, source: int, found: Sequence[Pieces | None]) -> Pieces:
    """The operation after what its input is made of, where one of the two only scales channels."""
    before = found[source]
    if before is not None and op.is_diagonal:
        return Pieces(before.source, tuple(_like(m, m.weight * op.weight) for m in before.maps))
    # A layer mixes rows, so of a maximum it is no maximum of its own.
    if before is not None and len(before.maps) == 1 and before.maps[0].is_diagonal:
        scale = before.maps[0].weight.reshape(op.groups, 1, -1, 1, 1)
        weight = op.weight.unflatten(0, (op.groups, -1)) * scale
        return Pieces(before.source, (_like(op, weight.flatten(0, 1)),))
    return Pieces(source, (op,))


def _operand(graph: Graph, i: int, found: Sequence[Pieces | None], source: int) -> Pieces | None:
    """Node i in terms of `source`, which may be itself."""
    if i == source:
        shape = (*graph.nodes[i].shape, 1, 1)[:3]
        ones = torch.ones(shape[0], 1, 1, 1, dtype=graph.dtype, device=graph.device)
        return Pieces(i, (Conv(ones, ones.flatten(), shape, groups=len(ones)),))
    pieces = found[i]
    return pieces if pieces is not None and pieces.source == source else None


def _common(
    graph: Graph, left: int, right: int, found: Sequence[Pieces | None]
) -> tuple[Pieces, Pieces] | None:
    """Two nodes in terms of one source."""
    for i, j in ((left, right), (right, left)):
        pieces = found[i]
        if pieces is None:
            continue
        other = _operand(graph, j, found, pieces.source)
        if other is not None:
            return (pieces, other) if i == left else (other, pieces)
    return None


def _sum(graph: Graph, node: Node, found: Sequence[Pieces | None]) -> Pieces | None:
    pair = _common(graph, node.inputs[0], node.inputs[1], found)
    if pair is None or len(pair[0].maps) * len(pair[1].maps) > _MOST:
        return None
    maps = [_added(a, b) for a in pair[0].maps for b in pair[1].maps]
    whole = tuple(m for m in maps if m is not None)
    return Pieces(pair[0].source, whole) if len(whole) == len(maps) else None


def _maximum(graph: Graph, node: Node, found: Sequence[Pieces | None]) -> Pieces | None:
    """The two of b + σ(d), whose rows are those of b + d, of b, or between (LeakyReLU).

    With a negative slope c, as of |d|, those of b + c·d take the place of those of b.
    """
    for i, b in (node.inputs, node.inputs[::-1]):
        op = graph.nodes[i].op
        if not isinstance(op, Activation):
            continue
        d = graph.nodes[i].inputs[0]
        a = None if op.least_slope < 0 else _minuend(graph, d, b)
        if a is not None:  # d = a − b, and b + d is a itself, whatever it is made of
            pair = _common(graph, a, b, found)
            maps = None if pair is None else (*pair[0].maps, *pair[1].maps)
        else:
            pair = _common(graph, d, b, found)
            if pair is None or len(pair[0].maps) > 1 or len(pair[1].maps) > 1:
                continue
            positive, negative = pair[0].maps[0], pair[1].maps[0]
            total = _added(positive, negative)
            other: Conv | None = negative
            if op.least_slope < 0:
                c = op.negative_slope  # of all channels, or one for each
                c = c.reshape(-1, 1, 1, 1) if isinstance(c, Tensor) else c
                other = _added(_like(positive, positive.weight * c), negative)
            maps = None if total is None or other is None else (total, other)
        if pair is not None and maps is not None and len(maps) <= _MOST:
            return Pieces(pair[0].source, maps)
    return None


def _minuend(graph: Graph, d: int, b: int) -> int | None:
    """The node a where node d is a − b."""
    if not isinstance(graph.nodes[d].op, Add):
        return None
    for a, n in (graph.nodes[d].inputs, graph.nodes[d].inputs[::-1]):
        op = graph.nodes[n].op
        negates = isinstance(op, Conv) and op.is_diagonal and bool((op.weight == -1).all())
        if negates and graph.nodes[n].inputs == (b,):
            return a
    return None


def _added(a: Conv, b: Conv) -> Conv | None:
    aligned = _aligned((a, b))
    return None if aligned is None else _like(aligned[0], aligned[0].weight + aligned[1].weight)


def _aligned(maps: Sequence[Conv]) -> list[Conv] | None:
    """The same maps with kernels of one size, at one place, in the same groups."""
    first = maps[0]
    if any(
        (m.input_shape, m.output_shape, m.stride)
        != (first.input_shape, first.output_shape, first.stride)
        for m in maps
    ):
        return None
    if len({m.groups for m in maps}) > 1:
        kernel = max(m.weight[0, 0].numel() for m in maps)
        if first.input_shape[0] * first.output_shape[0] * kernel > _LARGEST_SUM:
            return None
        maps = [_ungrouped(m) for m in maps]
    maps = [undilated(m) for m in maps]
    padding = tuple(max(m.padding[a] for m in maps) for a in (0, 1))
    size = [max(m.weight.shape[2 + a] + padding[a] - m.padding[a] for m in maps) for a in (0, 1)]
    found = []
    for m in maps:
        before = [padding[a] - m.padding[a] for a in (0, 1)]
        after = [size[a] - before[a] - m.weight.shape[2 + a] for a in (0, 1)]
        weight = F.pad(m.weight, (before[1], after[1], before[0], after[0]))
        found.append(_like(replace(m, padding=(padding[0], padding[1])), weight))
    # One that has more outputs than they had is still above them; one that has fewer is not.
    shape = found[0].output_shape
    return found if all(s >= t for s, t in zip(shape, first.output_shape, strict=True)) else None


def _ungrouped(op: Conv) -> Conv:
    weight = op.weight.unflatten(0, (op.groups, -1))
    width = weight.shape[2]
    whole = weight.new_zeros(len(op.weight), op.groups * width, *weight.shape[3:])
    for g in range(op.groups):
        rows = slice(g * weight.shape[1], (g + 1) * weight.shape[1])
        whole[rows, g * width : (g + 1) * width] = weight[g]
    return _like(replace(op, groups=1), whole)
