"""CROWN's backward pass over the canonical graph: a linear lower bound of any rows of any node.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
Functions", NeurIPS 2018; for DAGs Xu et al., "Automatic Perturbation Analysis", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.bounds.relax_pool import relax_pool
from greg_cert.verify.bounds.relax_smooth import relax_smooth
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Affine,
    Computed,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Smooth,
    Wiring,
)

Lines = tuple[Tensor, ...]
"""What `relax_activation`, `relax_smooth` or `relax_pool` gives for one node, each (B, …)."""


@dataclass(frozen=True)
class RelaxedNetwork:
    """A network with its activations between lines, for all inputs for which their boxes hold.

    Attributes:
        graph: the network.
        preactivations: for activation nodes their input's (lower, upper), each (B, *shape).
        terms: for each affine node the absolute terms that it sums, as in `absolute_terms`; None
            where rounding is not allowed for, as in float32, which only guides a search.
        slopes: for activation nodes the slopes (B, R, *shape) of the lower lines of neurons of
            unknown sign, between the negative slope and 1; the usual choice where there are none.
        lines: the lines of these boxes, filled as they are needed.
    """

    graph: Graph
    preactivations: Mapping[int, Interval]
    terms: Mapping[int, Tensor] | None = None
    slopes: Mapping[int, Tensor] | None = None
    lines: dict[int, Lines] = field(default_factory=dict)

    def lines_of(self, i: int) -> Lines:
        """Lines around activation node i."""
        if i not in self.lines:
            op, (low, high) = self.graph.nodes[i].op, self.preactivations[i]
            if isinstance(op, Smooth):
                self.lines[i] = relax_smooth(op.kind, low, high)
            elif isinstance(op, MaxPool):
                self.lines[i] = relax_pool(op, low, high)
            else:
                assert isinstance(op, Activation)
                self.lines[i] = relax_activation(low, high, op.negative_slope)
        return self.lines[i]


def backward_rows(
    network: RelaxedNetwork, start: int, rows: Tensor, more: Mapping[int, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and offset of a linear lower bound of `rows` times the output of node `start`.

    For every input x for which the pre-activations hold, rows·v(x) ≥ slope·x + offset.

    Args:
        network: with boxes of all activations up to `start`.
        start: node index.
        rows: (B, R, *shape of the node), with B = 1 where no activation comes before.
        more: further rows (B, R, *shape) of earlier nodes, added to what is bounded.

    Returns:
        slope (B, R, *input_shape) and offset (B, R), both differentiable in `rows`; and the sum
        (B, R) of the absolute terms of all layers, which measures the rounding of both.
    """
    graph, terms = network.graph, network.terms
    coefficients: dict[int, Tensor] = {start: rows}
    offset = size = rows.new_zeros(rows.shape[:2])

    def give(node: int, value: Tensor) -> None:
        coefficients[node] = coefficients[node] + value if node in coefficients else value

    for node_index, value in (more or {}).items():
        give(node_index, value)

    for i, node in reversed(graph.computed):
        if i not in coefficients:
            continue
        a = coefficients.pop(i)
        match node.op:
            case Affine() as op:
                offset = offset + op.constant(a)
                if terms is not None:
                    size = size + _weighted(a, terms[i])
                give(node.inputs[0], op.transposed(a))
            case Activation():
                slope_low, slope_high, intercept = network.lines_of(i)
                # a⁺·slope_low + a⁻·slope_high, in as few passes over the largest tensor as can be
                negative = a.clamp(max=0.0)
                # Its terms are all of one sign, so the sum measures its own rounding.
                step = _dot(negative, intercept)
                offset, size = offset + step, size - step.detach()
                lower, upper = slope_low.unsqueeze(1), slope_high.unsqueeze(1)
                if network.slopes is not None and i in network.slopes:
                    low, high = network.preactivations[i]
                    unstable = ~((low >= 0) | (high <= 0)).unsqueeze(1)
                    lower = torch.where(unstable, network.slopes[i], lower)
                back = a * lower
                if back.requires_grad:
                    back = torch.addcmul(back, negative, upper - lower)
                else:
                    back.addcmul_(negative, upper - lower)
                give(node.inputs[0], back)
            case Smooth():
                slope_low, intercept_low, slope_high, intercept_high = network.lines_of(i)
                positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
                for part, intercept in ((positive, intercept_low), (negative, intercept_high)):
                    offset = offset + _dot(part, intercept)
                    size = size + _weighted(part, intercept.abs())
                below = positive * slope_low.unsqueeze(1)
                give(node.inputs[0], torch.addcmul(below, negative, slope_high.unsqueeze(1)))
            case MaxPool() as op:
                below_shares, above_shares, intercept, own = network.lines_of(i)
                offset = offset + _dot(a.clamp(max=0.0), intercept)
                size = size + _weighted(a, own)
                give(node.inputs[0], through_windows(op, a, below_shares, above_shares))
            case Wiring():
                for j, part in zip(node.inputs, operand_rows(graph, node, a, 2), strict=True):
                    give(j, part)
            case _:
                assert_never(node.op)
    slope = coefficients.get(0)
    if slope is None:
        slope = rows.new_zeros(*rows.shape[:2], *graph.input_shape)
    return slope, offset, size


def operand_rows(graph: Graph, node: Computed, rows: Tensor, axis: int) -> list[Tensor]:
    """What coefficients (..., *shape) of a node that is `Wiring` are of each of its operands.

    That shape begins at `axis`.
    """
    shapes = [graph.nodes[j].shape for j in node.inputs]
    if isinstance(node.op, Flatten):
        return [rows.unflatten(axis, shapes[0])]
    if isinstance(node.op, Concat):
        return list(rows.split([shape[0] for shape in shapes], axis))
    return [rows for _ in shapes]


def through_windows(op: MaxPool, a: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """a⁺·below + a⁻·above, added up where windows read, (B, R, *output) -> (B, R, *input shape).

    `below` and `above` (B, C, k, H′, W′) are weights of members, as `relax_pool` gives them.
    """
    positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
    pairs = zip(below.unsqueeze(1).unbind(-3), above.unsqueeze(1).unbind(-3), strict=True)
    return op.spread(torch.addcmul(positive * low, negative, high) for low, high in pairs)


def _dot(a: Tensor, line: Tensor) -> Tensor:
    """a·line, (B, R, ...) and (B, ...) -> (B, R)."""
    return (a.flatten(2) @ line.flatten(1).unsqueeze(2)).squeeze(2)


def _weighted(a: Tensor, terms: Tensor) -> Tensor:
    """|a|·terms, of the same shapes; not differentiable."""
    return _dot(a.detach().abs(), terms)


def relax_activation(
    low: Tensor, high: Tensor, negative_slope: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lines around an activation on [low, high]: slope_low·z ≤ σ(z) ≤ slope_high·z + intercept.

    Where the sign is known both lines are the function itself. Elsewhere the upper line is the
    chord, and the lower slope is 1 or `negative_slope`, whichever leaves the smaller area; σ is
    convex, since `negative_slope` is at most 1.
    """
    one = torch.ones_like(low)
    # Not (low < 0) & (high > 0): bounds that are NaN must come out NaN, never as a dead neuron.
    unstable = ~((low >= 0) | (high <= 0))
    stable_slope = torch.where(low >= 0, one, negative_slope * one)
    # Rounding must not push the chord below the function's corners: the width is kept positive,
    # and the intercept is taken from the end that it leaves exact.
    width = torch.where(unstable, high - low, one)
    chord = (high - negative_slope * low) / width
    slope_high = torch.where(unstable, chord, stable_slope)
    slope_low = torch.where(
        unstable, torch.where(high > -low, one, negative_slope * one), stable_slope
    )
    intercept = torch.where(unstable, (negative_slope - chord) * low, 0.0 * one)
    return slope_low, slope_high, intercept


def neuron_rows(graph: Graph, target: int, indices: Tensor) -> tuple[int, Tensor, Tensor]:
    """Where a backward pass that reads neurons of `target`, by flat indices (B or 1, R), begins.

    A layer with its matrix at hand is stepped over: its rows are picked, not multiplied out.

    Returns:
        The node to begin at, rows (B or 1, R, *its shape), and what is to be added, (B or 1, R).
    """
    node = graph.nodes[target]
    match node.op:
        case Linear():
            return node.inputs[0], node.op.weight[indices], node.op.bias[indices]
        case Conv() if node.op.matrix is not None:
            rows = node.op.matrix[indices].unflatten(2, node.op.input_shape)
            plane = math.prod(node.shape[1:])
            return node.inputs[0], rows, node.op.bias[indices // plane]
        case _:
            rows = torch.zeros(
                *indices.shape, math.prod(node.shape), dtype=graph.dtype, device=indices.device
            )
            rows.scatter_(2, indices.unsqueeze(2), 1.0)
            return target, rows.unflatten(2, node.shape), torch.zeros_like(rows[..., 0])
