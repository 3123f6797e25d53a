"""How much float64 may lose: the absolute terms that each affine layer sums, over whole balls.

A sum of n products, in any order, is off by at most n·ε/2 times the sum of their absolute values
(Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, §3.1). Where terms cancel,
the result says nothing of their size, so it is measured by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Activation, Add, Affine, Graph, Smooth, Wiring, forward_all
from greg_cert.verify.graph.smooth import ALLOWANCE, crosses_jump, jump, value_range
from greg_cert.verify.norms import per_sample

_SLACK = 1e-9  # of lengths
_STEEPEST_SMOOTH = 1.13  # no smooth activation here is steeper (GELU, 1.129)

Boxes = Mapping[int, tuple[Tensor, Tensor]]


def sum_rounding(op: Affine, *, backwards: bool = False) -> float:
    """What an affine layer of an interval may lose, as a share of its absolute terms.

    Centre, spread and their sum each take part; sums of the transposed layer, `backwards`, run over
    outputs. 0 in float32, which only guides a search: an allowance of its size would mislead it.
    """
    if op.weight.dtype != torch.float64:
        return 0.0
    count = op.weight.numel() // op.weight.shape[1] if backwards else op.weight[0].numel()
    return 2.0 * (count + 4) * torch.finfo(torch.float64).eps


@torch.no_grad()
def absolute_terms(
    graph: Graph, preactivations: Boxes, inputs: Tensor, radii: Tensor
) -> dict[int, Tensor]:
    """For each affine node |W|·max|v| + |b|, (B, *shape), v its operand over the whole ball.

    A backward pass replaces a·(W·v + b) by (a·W)·v + a·b, and what it rounds off a·W is then
    multiplied by v: it loses at most a share of |a|·(|W|·|v| + |b|), wherever in the ball v is.

    Args:
        graph: the network.
        preactivations: for the activation nodes known so far their input's (lower, upper); nodes
            behind the first unknown one are left out.
        inputs: (B, ...) centres.
        radii: (B,).
    """
    return _magnitudes(graph, preactivations, inputs, radii)[1]


def _magnitudes(
    graph: Graph, preactivations: Boxes, inputs: Tensor, radii: Tensor
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The largest size of every node's value over whole balls, and the terms of affine nodes."""
    largest: dict[int, Tensor] = {0: inputs.abs() + radii.reshape(-1, *[1] * (inputs.ndim - 1))}
    terms: dict[int, Tensor] = {}
    for i, node in graph.computed:
        if any(j not in largest for j in node.inputs):
            continue
        operands = [largest[j] for j in node.inputs]
        match node.op:
            case Affine() as op:
                largest[i] = terms[i] = op.absolute(operands[0])
            case Activation():
                if i in preactivations:
                    low, high = preactivations[i]
                    largest[i] = torch.minimum(operands[0], torch.maximum(low.abs(), high.abs()))
            case Smooth(kind):
                if i in preactivations:
                    ends = value_range(kind, *preactivations[i])
                    largest[i] = torch.maximum(ends[0].abs(), ends[1].abs())
            case MaxPool() as op:
                if i in preactivations:
                    low, high = preactivations[i]
                    inside = torch.maximum(low.abs(), high.abs())
                    largest[i] = op.apply(torch.minimum(operands[0], inside))
            case Wiring() as op:
                largest[i] = op.apply(*operands)
            case _:
                assert_never(node.op)
    return largest, terms


@torch.no_grad()
def interval_rounding(
    graph: Graph, preactivations: Boxes, inputs: Tensor, radii: Tensor
) -> dict[int, Tensor]:
    """What an interval of each node (B, *shape) may be off by where nobody rounds outwards.

    Boxes of activations that are given have their rounding allowed for, and begin anew. Arguments
    are as of `absolute_terms`, of a network without smooth activations.
    """
    unit = torch.finfo(inputs.dtype).eps
    largest, terms = _magnitudes(graph, preactivations, inputs, radii)
    errors: dict[int, Tensor] = {0: unit * largest[0]}
    for i, node in graph.computed:
        if i not in largest:
            continue
        carried = [errors[j] for j in node.inputs]
        match node.op:
            case Affine() as op:
                errors[i] = op.apply(carried[0], op.weight.abs()) + sum_rounding(op) * terms[i]
            case Add() as op:
                errors[i] = op.apply(*carried) + unit * largest[i]
            case MaxPool() | Wiring() as op:
                errors[i] = op.apply(*carried)
            case Activation() | Smooth():
                errors[i] = torch.zeros_like(carried[0])
            case _:
                assert_never(node.op)
    return errors


@torch.no_grad()
def score_rounding(graph: Graph, x: Tensor) -> Tensor:
    """What S(x) (B,) may be off by in float64: errors of all layers, carried to the logits.

    Each affine layer multiplies what its operand is off by by |W| and adds a share of its own
    absolute terms; no other operation enlarges an error by more than a rounding of its own.
    """
    unit = torch.finfo(x.dtype).eps
    values = forward_all(graph, x)
    error = forward_errors(graph, values)[-1]
    # logsumexp moves by no more than its arguments, and rounds its own few operations.
    largest = values[-1].abs().amax(1)
    return 2 * error.amax(1) + (graph.num_classes + 8) * unit * (1 + largest)


@torch.no_grad()
def forward_errors(
    graph: Graph, values: Sequence[Tensor], norms: Mapping[int, float] | None = None
) -> list[Tensor]:
    """What rounding may have changed of every node's value, (B, *shape) each.

    Absolute weights carry an error neuron by neuron, which at depth grows beyond any margin; norms
    carry its ℓ2 length, which no neuron's error exceeds: of each affine node, where they are given.
    """
    unit = torch.finfo(values[0].dtype).eps
    errors = [torch.zeros_like(values[0])]
    lengths = [values[0].new_zeros(len(values[0]))]
    for i, node in graph.computed:
        value = values[i]
        carried = [errors[j] for j in node.inputs]
        source = values[node.inputs[0]]
        match node.op:
            case Affine() as op:
                error = _rounded(op, source, unit, carried[0])
            case Smooth(kind):
                error = carried[0] * _STEEPEST_SMOOTH + ALLOWANCE * (1 + value.abs())
                low, high = source - carried[0], source + carried[0]
                error = torch.where(crosses_jump(kind, low, high), error + jump(kind, high), error)
            case MaxPool() | Wiring() as op:
                error = op.apply(*carried)
            case Activation():
                error = carried[0]
            case _:
                assert_never(node.op)
        error = error + unit * value.abs()
        if norms is not None:
            longest = torch.linalg.vector_norm(error.flatten(1), dim=1)
            before = [lengths[j] for j in node.inputs]
            carry = None
            if isinstance(node.op, Affine):
                carry = norms[i] * before[0]
                own = _rounded(node.op, source, unit)
            elif isinstance(node.op, Activation | Add):
                carry, own = torch.stack(before).sum(0), torch.zeros_like(value)
            if carry is not None:
                own = torch.linalg.vector_norm((own + unit * value.abs()).flatten(1), dim=1)
                longest = torch.minimum(longest, carry + own)
            lengths.append(longest * (1 + _SLACK))
            error = torch.minimum(error, per_sample(lengths[-1], error))
        errors.append(error)
    return errors


def _rounded(op: Affine, source: Tensor, unit: float, carried: Tensor | float = 0.0) -> Tensor:
    """Error of an affine layer's outputs for an operand (B, *shape) that is off by `carried`."""
    terms = carried + (op.weight[0].numel() + 2) * unit * source.abs()
    return op.absolute(terms, 2 * unit)
