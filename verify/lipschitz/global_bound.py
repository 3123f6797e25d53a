"""A proven Lipschitz constant of the score over all inputs, from norms alone.

Every node is L-Lipschitz in the input: a layer multiplies L by its operator norm, an activation by
the largest |σ'|, a max pool by the root of the number of windows that a pixel is in, a sum adds, a
concatenation takes the root of the sum of squares (for ℓ∞ a pool is 1, a concatenation the
largest); see `pieces` for what is taken together. At the top −∇S is a convex combination of the
rows w_i of the head (energy, largest logit), of w_i − w_absent (absent class), and for the largest
softmax probability s = p_k it is s·Σ_j p_j(w_k − w_j), of length ≤ s(1 − s)·max‖w_i − w_j‖ and
s(1 − s) ≤ ¼. A maximum of functions, as at ties, is no steeper than they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import assert_never

import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.scores import score_of
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Smooth,
)
from greg_cert.verify.graph.smooth import crosses_jump, slope_range
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz.pieces import affine_pieces, together
from greg_cert.verify.norms import check_norm, dual_norm
from greg_cert.verify.operators.layers import UNIT
from greg_cert.verify.operators.operator_norms import operator_norm

_SLACK = 1e-12  # of products and sums of the norms themselves
_LARGEST_PAIRS = 1024  # classes, up to which differences of all pairs are measured
_LARGEST_HEAD = 2**24  # numbers, up to which the last layers are written out as one
_FAR = 1e300


@torch.inference_mode(False)
def global_lipschitz_bound(
    model: nn.Module, input_shape: tuple[int, ...], *, norm: float = 2.0, score: str = "energy"
) -> float:
    """L̄ ≥ sup ‖∇S‖* over all inputs, so |S(x′) − S(x)| ≤ L̄·‖x′ − x‖ everywhere.

    Costs the operator norms of the layers, once for a set of weights; at any depth.

    Args:
        model: raw images (B, C, H, W) to logits (B, K); evaluated in float64, eval mode.
        input_shape: of one input, (C, H, W) or (D,).
        norm: of perturbations, 2 or inf; the gradient is measured in its dual.
        score: one of `greg_cert.scores.SCORES`.

    Returns:
        In score units per pixel unit; inf where a function of the network has a jump (torch's
        softplus) or numbers overflow.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: for a layer that cannot be bounded soundly.
    """
    check_norm(norm)
    return global_constant(trace_model(model, input_shape), score, norm)


@torch.no_grad()
def global_constant(graph: Graph, score: str, norm: float) -> float:
    """`global_lipschitz_bound` of a graph."""
    return float(score_constant(graph.to(torch.float64), score, norm, _proven(norm)))


@torch.no_grad()
def node_constants(graph: Graph, norm: float = 2.0) -> list[float]:
    """For every node a proven Lipschitz constant in the input, ℓ_norm to ℓ_norm, everywhere."""
    found = _constants(graph.to(torch.float64), norm, _proven(norm))
    return [float(constant) for constant in found]


NormsOf = Callable[[Sequence[Conv | Linear]], Sequence[Tensor]]
"""The operator norms of layers, each of one kind on both sides, as scalars."""


def _proven(norm: float) -> NormsOf:
    return lambda ops: torch.tensor(
        [operator_norm(op, norm) for op in ops], dtype=torch.float64, device="cpu"
    ).unbind()


def score_constant(graph: Graph, score: str, norm: float, norms_of: NormsOf) -> Tensor:
    """The formula of `global_lipschitz_bound` with these norms of layers, a scalar.

    It is a bound where they are, and differentiable in the weights where they are.
    """
    constants = _constants(graph, norm, norms_of)
    best = torch.full((), math.inf, dtype=torch.float64, device=graph.device)
    i = len(graph.nodes) - 1
    rows = torch.eye(graph.num_classes, dtype=graph.dtype, device=graph.device)
    absolute, terms = rows, 0
    # The head is as long as the last affine layers let it go back.
    while True:
        lost = terms * UNIT * dual_norm(absolute, norm)
        found = _product(_steepest_score(score, rows, lost, norm), constants[i])
        best = torch.minimum(best, found)
        op = graph.nodes[i].op
        i = graph.nodes[i].inputs[0] if graph.nodes[i].inputs else i
        size = len(rows) * math.prod(graph.nodes[i].shape)
        if not isinstance(op, Affine | Flatten) or size > _LARGEST_HEAD:
            return best * (1 + _SLACK)
        if isinstance(op, Flatten):
            shape = (-1, *graph.nodes[i].shape)
            rows, absolute = rows.reshape(shape), absolute.reshape(shape)
        else:
            rows, absolute = op.adjoint(rows, op.weight), op.adjoint(absolute, op.weight.abs())
            terms += 2 * (op.weight[:, 0].numel() + 2)


def _constants(graph: Graph, norm: float, norms_of: NormsOf) -> list[Tensor]:
    """A Lipschitz constant in the input for every node."""
    pieces = affine_pieces(graph)
    # Of each node that is measured: the layer, and the node it is a layer of.
    layers: dict[int, tuple[Conv | Linear, int]] = {}
    for i, node in graph.computed:
        made_of = pieces[i]
        whole = None if made_of is None else together(made_of.maps)
        if made_of is not None and whole is not None:
            layers[i] = whole, made_of.source
        elif isinstance(node.op, Affine):
            layers[i] = node.op, node.inputs[0]
    norms = dict(zip(layers, norms_of([op for op, _ in layers.values()]), strict=True))
    # In float64 whatever the graph is in: products over many layers leave float32. On the CPU
    # wherever it is: they are single numbers.
    constants = [torch.ones((), dtype=torch.float64, device="cpu")]
    for i, node in graph.computed:
        before = [constants[j] for j in node.inputs]
        direct: Tensor | None = None
        if i in layers:
            direct = _product(constants[layers[i][1]], norms[i])
        match node.op:
            case Affine():
                # Together with a scale before it a layer is no more than the product of the two.
                assert direct is not None
                found = direct
            case Activation() | Smooth() as op:
                found = _product(before[0], steepest_slope(op))
            case MaxPool() as op:
                found = _product(before[0], op.lipschitz(norm))
            case Add():
                found = before[0] + before[1]
                found = found if direct is None else torch.minimum(found, direct)
            case Concat():
                parts = torch.stack(before)
                found = parts.amax() if norm == math.inf else torch.linalg.vector_norm(parts)
            case Flatten():
                found = before[0]
            case _:
                assert_never(node.op)
        constants.append(found * (1 + _SLACK))
    return constants


def steepest_slope(op: Activation | Smooth) -> float:
    """Largest |σ'| over the whole line, at most this; inf for a function that jumps."""
    if isinstance(op, Activation):
        return max(1.0, abs(op.least_slope))
    low = torch.tensor([-_FAR], dtype=torch.float64, device="cpu")
    if crosses_jump(op.kind, low, -low).any():
        return math.inf
    smallest, largest = slope_range(op.kind, low, -low)
    return max(abs(float(smallest)), abs(float(largest)))


def _product(one: Tensor, other: Tensor | float) -> Tensor:
    return (one * other).nan_to_num(nan=math.inf, posinf=math.inf)


def _steepest_score(score: str, rows: Tensor, lost: Tensor, norm: float) -> Tensor:
    """Bound of ‖∇S‖* for logits of these rows (K, ...), each off by `lost` (K,) at most."""
    kind = score_of(score)

    def longest(vectors: Tensor, off: Tensor) -> Tensor:
        if len(vectors) == 0:
            return rows.new_zeros(())
        terms = 2 * (vectors[0].numel() + 8) * UNIT
        return (dual_norm(vectors, norm) + off).amax() * (1 + terms)

    if kind.absent:
        if len(rows) < 2:
            raise UsageError(f"expected K >= 2 logits for the score {score}, but got {len(rows)}")
        return longest(rows[:-1] - rows[-1], lost[:-1] + lost[-1])
    if not kind.relative:
        return longest(rows, lost)
    if len(rows) > _LARGEST_PAIRS:
        return longest(rows, lost) / 2
    pairs = [longest(rows[:i] - rows[i], lost[:i] + lost[i]) for i in range(len(rows))]
    return torch.stack(pairs).amax() / 4
