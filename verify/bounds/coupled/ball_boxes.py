"""Boxes of every neuron over ℓ2 balls for a few forward passes, and how far layers move.

Two facts are carried forward together. An interval of each neuron, as interval arithmetic has it;
and a ball: the change of a node's value factors as diag(mask)·v with ‖v‖₂ ≤ ρ. A neuron behind an
affine layer moves by at most ρ·‖row·diag(mask)‖₂, which interval arithmetic cannot see. Neither
needs a backward pass of any neuron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval, forward_interval, steepest
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    NONLINEAR,
    Activation,
    Add,
    Affine,
    Concat,
    Flatten,
    Graph,
    Op,
    Smooth,
    forward_all,
)
from greg_cert.verify.graph.rounding import forward_errors
from greg_cert.verify.graph.smooth import crosses_jump
from greg_cert.verify.norms import per_sample
from greg_cert.verify.operators.operator_norms import operator_norm, row_norms

_SLACK = 1e-9  # relative, of products of norms; float64 rounding stays far below it


@dataclass(frozen=True)
class Moved:
    """How far a node's value may move from its centre, over each ball.

    Attributes:
        centre: (B, *shape) value at the centre of the ball.
        error: (B, *shape) what rounding may have changed of it.
        box: (lower, upper), (B, *shape) each.
        ball: (B,) the change is diag(mask)·v with ‖v‖₂ at most this.
        mask: (B, *shape) nonnegative.
    """

    centre: Tensor
    error: Tensor
    box: Interval
    ball: Tensor
    mask: Tensor

    @property
    def reach(self) -> Tensor:
        """ℓ2 length (B,) of the change, at most: by the ball, or to the box's farthest corner."""
        return torch.minimum(self.ball * self.mask.flatten(1).amax(1), self._corner())

    def _corner(self) -> Tensor:
        low, high = self.box
        far = torch.maximum(high - self.centre, self.centre - low) + self.error
        return torch.linalg.vector_norm(far.flatten(1), dim=1) * (1 + _SLACK)  # type: ignore[no-any-return]

    def of(self, members: Tensor) -> Moved:
        """The same for some samples, by index."""
        centre, error, low, high, ball, mask = (
            t[members] for t in (self.centre, self.error, *self.box, self.ball, self.mask)
        )
        return Moved(centre, error, (low, high), ball, mask)

    def whole(self) -> Moved:
        """The same with the mask taken into the ball."""
        return Moved(self.centre, self.error, self.box, self.reach, torch.ones_like(self.mask))


def preactivations(graph: Graph, moved: Sequence[Moved]) -> dict[int, Interval]:
    """For each activation node its input's (lower, upper), each (B, *shape)."""
    return {i: moved[graph.nodes[i].inputs[0]].box for i in graph.activations}


def layer_norms(graph: Graph) -> dict[int, float]:
    """For each affine node a proven bound of its operator norm from ℓ2 to ℓ2."""
    return {
        i: operator_norm(node.op)
        for i, node in enumerate(graph.nodes)
        if isinstance(node.op, Affine)
    }


@torch.no_grad()
def ball_boxes(
    graph: Graph,
    norms: Mapping[int, float],
    x: Tensor,
    radii: Tensor,
    known: Mapping[int, Interval] | None = None,
) -> list[Moved]:
    """One `Moved` a node, for the ℓ2 balls of `radii` (B,) about x (B, *input_shape).

    Norms are as of `layer_norms`; `known` are bounds of activations' inputs from elsewhere.
    """
    values = forward_all(graph, x)
    errors = forward_errors(graph, values, norms) if graph.dtype == torch.float64 else None
    ball = radii.reshape(-1, *[1] * (x.ndim - 1))
    ones = torch.ones_like(x)
    moved = [Moved(x, torch.zeros_like(x), (x - ball, x + ball), radii, ones)]
    for i, node in graph.computed:
        centre = values[i]
        error = torch.zeros_like(centre) if errors is None else errors[i]
        if isinstance(node.op, NONLINEAR):
            source = _met(moved[node.inputs[0]], None if known is None else known.get(i))
            moved[node.inputs[0]] = source
        parents = [moved[j] for j in node.inputs]
        interval = forward_interval(node.op, [p.box for p in parents])
        reach, mask = _ball_of(node.op, parents, norms.get(i), centre)
        if isinstance(node.op, Affine):
            length = row_norms(node.op, parents[0].mask)
            half = per_sample(parents[0].ball, length) * length * (1 + _SLACK) + error
            interval = met(interval, (centre - half, centre + half))
        found = Moved(centre, error, interval, reach * (1 + _SLACK), mask)
        if isinstance(node.op, Smooth):
            jumps = crosses_jump(node.op.kind, *parents[0].box).flatten(1).any(1)
            if jumps.any():  # there only the box says how far
                far = found._corner()
                found = replace(
                    found,
                    ball=torch.where(jumps, far, found.ball),
                    mask=torch.where(jumps.reshape(-1, *[1] * (mask.ndim - 1)), 1.0, mask),
                )
        elif not isinstance(node.op, (Activation, MaxPool, Concat, Flatten)):
            found = found.whole()  # without a mask that would be lost
        moved.append(found)
    return moved


def _ball_of(
    op: Op, parents: Sequence[Moved], norm: float | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Ball (B,) and mask (B, *shape) of a node from those of its operands."""
    first = parents[0]
    match op:
        case Affine():
            assert norm is not None
            return first.reach * norm, torch.ones_like(like)
        case Activation() | Smooth():
            return first.reach, steepest(op, *first.box)
        case MaxPool():
            return first.ball * op.lipschitz(2.0), op.apply(first.mask)
        case Add():
            total = torch.stack([p.reach for p in parents]).sum(0)
            return total, torch.ones_like(like)
        case Concat():
            ball = torch.stack([p.ball for p in parents]).norm(dim=0)
            return ball, op.apply(*(p.mask for p in parents))
        case Flatten():
            return first.ball, op.apply(first.mask)
        case _:
            assert_never(op)


def met(one: Interval, other: Interval) -> Interval:
    """The intersection; where rounding would leave nothing, the two ends stay in order."""
    low, high = torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])
    return torch.minimum(low, high), torch.maximum(low, high)


def _met(moved: Moved, known: Interval | None) -> Moved:
    if known is None:
        return moved
    return replace(moved, box=met(moved.box, known)).whole()
