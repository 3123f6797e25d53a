"""CROWN's backward pass over the canonical graph: a linear lower bound of any rows of any node.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
Functions", NeurIPS 2018; for DAGs Xu et al., "Automatic Perturbation Analysis", NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from greg_cert.verify.graph import Activation, Add, Concat, Conv, Flatten, Graph, Linear, Smooth
from greg_cert.verify.interval import Interval
from greg_cert.verify.relax_smooth import kept_lines


def backward_rows(
    graph: Graph, preactivations: Mapping[int, Interval], start: int, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Slope and offset of a linear lower bound of `rows` times the output of node `start`.

    For every input x for which the pre-activations hold, rows·v(x) ≥ slope·x + offset.

    Args:
        graph: the network.
        preactivations: for each activation node before `start` its input's (lower, upper).
        start: node index.
        rows: (B, R, *shape of the node), with B = 1 where no activation comes before.

    Returns:
        slope (B, R, *input_shape) and offset (B, R), both differentiable in `rows`; and the sum
        (B, R) of the absolute terms that the offset is made of, which measures its rounding.
    """
    batch, count = rows.shape[:2]
    coefficients: dict[int, Tensor] = {start: rows}
    offset = rows.new_zeros(batch, count)
    size = rows.new_zeros(batch, count)

    def give(node: int, value: Tensor) -> None:
        coefficients[node] = coefficients[node] + value if node in coefficients else value

    for i in range(start, 0, -1):
        if i not in coefficients:
            continue
        a, node = coefficients.pop(i), graph.nodes[i]
        match node.op:
            case Conv():
                offset = offset + a.sum((-2, -1)) @ node.op.bias
                size = size + a.detach().abs().sum((-2, -1)) @ node.op.bias.abs()
                back = node.op.adjoint(a.flatten(0, 1))
                give(node.inputs[0], back.unflatten(0, (batch, count)))
            case Linear():
                offset = offset + a @ node.op.bias
                size = size + a.detach().abs() @ node.op.bias.abs()
                give(node.inputs[0], a @ node.op.weight)
            case Activation():
                low, high = preactivations[i]
                slope_low, slope_high, intercept = relax_activation(
                    low, high, node.op.negative_slope
                )
                # a⁺·slope_low + a⁻·slope_high, in as few passes over the largest tensor as can be
                negative = a.clamp(max=0.0)
                # Its terms are all of one sign, so the sum measures its own rounding.
                step = (negative.flatten(2) @ intercept.flatten(1).unsqueeze(2)).squeeze(2)
                offset, size = offset + step, size - step.detach()
                gap = (slope_high - slope_low).unsqueeze(1)
                give(node.inputs[0], torch.addcmul(a * slope_low.unsqueeze(1), negative, gap))
            case Smooth(kind):
                lines = kept_lines(kind, *preactivations[i])
                slope_low, intercept_low, slope_high, intercept_high = lines
                positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
                for part, intercept in ((positive, intercept_low), (negative, intercept_high)):
                    line, part = intercept.flatten(1).unsqueeze(2), part.flatten(2)
                    offset = offset + (part @ line).squeeze(2)
                    size = size + (part.detach().abs() @ line.abs()).squeeze(2)
                below = positive * slope_low.unsqueeze(1)
                give(node.inputs[0], torch.addcmul(below, negative, slope_high.unsqueeze(1)))
            case Add():
                for j in node.inputs:
                    give(j, a)
            case Concat():
                sizes = [graph.nodes[j].shape[0] for j in node.inputs]
                for j, part in zip(node.inputs, a.split(sizes, dim=2), strict=True):
                    give(j, part)
            case Flatten():
                give(node.inputs[0], a.unflatten(2, graph.nodes[node.inputs[0]].shape))
            case _:
                raise AssertionError(f"unexpected operation {node.op}")
    slope = coefficients.get(0)
    if slope is None:
        slope = rows.new_zeros(batch, count, *graph.input_shape)
    return slope, offset, size


def relax_activation(
    low: Tensor, high: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Lines around LeakyReLU on [low, high]: slope_low·z ≤ σ(z) ≤ slope_high·z + intercept.

    Where the sign is known both lines are the function itself. Elsewhere the upper line is the
    chord, and the lower slope is 1 or `negative_slope`, whichever leaves the smaller area.
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
