"""CROWN's backward pass over the canonical graph: a linear lower bound of any rows of any node.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
Functions", NeurIPS 2018; for DAGs Xu et al., "Automatic Perturbation Analysis", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.bounds.relax_pool import relax_pool
from greg_cert.verify.bounds.relax_smooth import relax_smooth
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Smooth,
)

Lines = tuple[Tensor, ...]
"""What `relax_activation`, `relax_smooth` or `relax_pool` gives for one node, each (B, …)."""


def backward_rows(
    graph: Graph,
    preactivations: Mapping[int, Interval],
    start: int,
    rows: Tensor,
    terms: Mapping[int, Tensor] | None,
    *,
    more: Mapping[int, Tensor] | None = None,
    slopes: Mapping[int, Tensor] | None = None,
    lines: dict[int, Lines] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and offset of a linear lower bound of `rows` times the output of node `start`.

    For every input x for which the pre-activations hold, rows·v(x) ≥ slope·x + offset.

    Args:
        graph: the network.
        preactivations: for each activation node before `start` its input's (lower, upper).
        start: node index.
        rows: (B, R, *shape of the node), with B = 1 where no activation comes before.
        terms: for each affine node the absolute terms that it sums, as in `absolute_terms`; None
            where nobody asks for the rounding, as in float32, which only drafts where to look.
        more: further rows (B, R, *shape) of earlier nodes, added to what is bounded.
        slopes: for activation nodes the slopes (B, R, *shape) of the lower lines of neurons of
            unknown sign, between the negative slope and 1; the usual choice where there are none.
        lines: a store of the lines of these pre-activations, filled as they are needed.

    Returns:
        slope (B, R, *input_shape) and offset (B, R), both differentiable in `rows`; and the sum
        (B, R) of the absolute terms of all layers, which measures the rounding of both.
    """
    batch, count = rows.shape[:2]
    coefficients: dict[int, Tensor] = {start: rows}
    offset = rows.new_zeros(batch, count)
    size = rows.new_zeros(batch, count)

    def give(node: int, value: Tensor) -> None:
        coefficients[node] = coefficients[node] + value if node in coefficients else value

    for node_index, value in (more or {}).items():
        give(node_index, value)

    for i in range(start, 0, -1):
        if i not in coefficients:
            continue
        a, node = coefficients.pop(i), graph.nodes[i]
        match node.op:
            case Conv():
                offset = offset + a.sum((-2, -1)) @ node.op.bias
                if terms is not None:
                    size = size + _weighted(a, terms[i])
                back = node.op.adjoint(a.flatten(0, 1))
                give(node.inputs[0], back.unflatten(0, (batch, count)))
            case Linear():
                offset = offset + a @ node.op.bias
                if terms is not None:
                    size = size + _weighted(a, terms[i])
                give(node.inputs[0], a @ node.op.weight)
            case Activation():
                low, high = preactivations[i]
                slope_low, slope_high, intercept = lines_of(i, node.op, low, high, lines)
                # a⁺·slope_low + a⁻·slope_high, in as few passes over the largest tensor as can be
                negative = a.clamp(max=0.0)
                # Its terms are all of one sign, so the sum measures its own rounding.
                step = (negative.flatten(2) @ intercept.flatten(1).unsqueeze(2)).squeeze(2)
                offset, size = offset + step, size - step.detach()
                lower, upper = slope_low.unsqueeze(1), slope_high.unsqueeze(1)
                if slopes is not None and i in slopes:
                    unstable = ~((low >= 0) | (high <= 0)).unsqueeze(1)
                    lower = torch.where(unstable, slopes[i], lower)
                back = a * lower
                if back.requires_grad:
                    back = torch.addcmul(back, negative, upper - lower)
                else:
                    back.addcmul_(negative, upper - lower)
                give(node.inputs[0], back)
            case Smooth():
                low, high = preactivations[i]
                slope_low, intercept_low, slope_high, intercept_high = lines_of(
                    i, node.op, low, high, lines
                )
                positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
                for part, intercept in ((positive, intercept_low), (negative, intercept_high)):
                    line, part = intercept.flatten(1).unsqueeze(2), part.flatten(2)
                    offset = offset + (part @ line).squeeze(2)
                    size = size + (part.detach().abs() @ line.abs()).squeeze(2)
                below = positive * slope_low.unsqueeze(1)
                give(node.inputs[0], torch.addcmul(below, negative, slope_high.unsqueeze(1)))
            case MaxPool():
                low, high = preactivations[i]
                below_shares, above_shares, line, own = lines_of(i, node.op, low, high, lines)
                negative = a.clamp(max=0.0)
                offset = offset + (negative.flatten(2) @ line.flatten(1).unsqueeze(2)).squeeze(2)
                size = size + _weighted(a, own)
                give(node.inputs[0], through_windows(node.op, a, below_shares, above_shares))
            case Add():
                for j in node.inputs:
                    give(j, a)
            case Concat():
                sizes = [graph.nodes[j].shape[0] for j in node.inputs]
                for j, part in zip(node.inputs, a.split(sizes, dim=2), strict=True):
                    give(j, part)
            case Flatten():
                give(node.inputs[0], a.unflatten(2, graph.nodes[node.inputs[0]].shape))
            case Input():
                raise AssertionError("no pass goes beyond the input")
            case _:
                assert_never(node.op)
    slope = coefficients.get(0)
    if slope is None:
        slope = rows.new_zeros(batch, count, *graph.input_shape)
    return slope, offset, size


def lines_of(
    i: int,
    op: Activation | Smooth | MaxPool,
    low: Tensor,
    high: Tensor,
    store: dict[int, Lines] | None,
) -> Lines:
    """Lines around activation node i on [low, high], from the store where it has them."""
    if store is not None and i in store:
        return store[i]
    if isinstance(op, Smooth):
        found: Lines = relax_smooth(op.kind, low, high)
    elif isinstance(op, MaxPool):
        found = relax_pool(op, low, high)
    else:
        found = relax_activation(low, high, op.negative_slope)
    if store is not None:
        store[i] = found
    return found


def through_windows(op: MaxPool, a: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """a⁺·below + a⁻·above, added up where windows read, (B, R, *output) -> (B, R, *input shape).

    Args:
        op: the pool.
        a: (B, R, *output shape).
        below: (B, C, k, H′, W′) weights of members, with `above` as `relax_pool` gives them.
        above: see `below`.
    """
    positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
    pairs = zip(below.unsqueeze(1).unbind(-3), above.unsqueeze(1).unbind(-3), strict=True)
    return op.spread(torch.addcmul(positive * low, negative, high) for low, high in pairs)


def _weighted(a: Tensor, terms: Tensor) -> Tensor:
    """|a|·terms, (B, R, ...) and (B, ...) -> (B, R)."""
    return (a.detach().abs().flatten(2) @ terms.flatten(1).unsqueeze(2)).squeeze(2)


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
    """Where a backward pass that reads single neurons of `target` begins.

    A layer with its matrix at hand is stepped over: its rows are picked, not multiplied out.

    Args:
        graph: the network.
        target: node index.
        indices: (B or 1, R) flat indices of neurons.

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
