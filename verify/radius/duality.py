"""From linear bounds of the logits to radii, by convex duality.

logsumexp z = max over the simplex of p·z + H(p). So for any fixed p, logsumexp z ≥ p·z + H(p), and
a linear bound p·z ≥ c + a·(x′ − x) on the ball of radius ε shows logsumexp z ≥ ℓ within
min{ε, (c + H(p) − ℓ)/‖a‖*}. The maximum is the same without H. Upper bounds are in `chord.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.alpha import SlopeAscent, first_slopes
from greg_cert.verify.bounds.engine import Relaxation
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.graph.ops import Activation
from greg_cert.verify.radius.goals import SLACK, Goal

_RATE = 0.5  # of mirror ascent


def entropy(p: Tensor) -> Tensor:
    """H(p) = −Σ p log p, (..., K) -> (...), with 0 log 0 = 0."""
    return -torch.xlogy(p, p).sum(-1)


def first_weights(goal: Goal, logits: Tensor) -> Tensor:
    """Weights p (B, G, K) to begin with: softmax of z at the centres, or the largest alone."""
    z = goal.shifted(logits)
    if goal.soft:
        return z.softmax(2)
    return torch.zeros_like(z).scatter(2, z.argmax(2, keepdim=True), 1.0)


def lower_rows(goal: Goal, p: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, G, K) and constants (B, G): rows·f + constant is at most the goal's margin."""
    constant = entropy(p) if goal.soft else torch.zeros_like(p[..., 0])
    return goal.rows(p), constant - goal.level.unsqueeze(1)


def allowance(value: Tensor, goal: Goal) -> Tensor:
    """What rounding may take of a margin, (B, R), where `value` is the part that the bound gave."""
    # Rounding leaves Σp off one by some ulps, which moves p·z by that times |z|: inside this.
    level = goal.level.abs().nan_to_num(posinf=0.0).unsqueeze(1)
    return SLACK * (1 + value.abs() + level)


@torch.no_grad()
def lower_reach(relaxation: Relaxation, goal: Goal, p: Tensor) -> Tensor:
    """Distance (B,) within which an `above` goal follows from the weights p (B, G, K).

    Zero where a bound fails at the centre. Valid only up to the radius of the relaxation: the
    caller takes the minimum.
    """
    rows, constant = lower_rows(goal, p)
    value, slope = relaxation.linear(rows)
    gap = value + constant - allowance(value, goal)
    reach = torch.where(gap > 0, gap / slope, torch.zeros_like(gap))
    return reach.amin(1)


@torch.no_grad()
def lower_value(relaxation: Relaxation, goal: Goal, p: Tensor) -> Tensor:
    """Lower bounds (B, G) of an `above` goal's log-sum-exps, or maxima, over the region."""
    rows, constant = lower_rows(goal, p)
    low = relaxation.lower(rows)
    return low + constant + goal.level.unsqueeze(1) - allowance(low, goal)


def improve_weights(relaxation: Relaxation, goal: Goal, p: Tensor, steps: int) -> Tensor:
    """Mirror ascent on p (B, G, K): raise the lower bounds of p·z + H(p) over the region.

    The result is the best p seen, so the bound over the region itself never falls.
    """
    ascent = _MirrorAscent(goal, p)
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = ascent.leaf()
            low = relaxation.lower(lower_rows(goal, leaf)[0])
            (gradient,) = torch.autograd.grad(low.sum(), leaf)
        ascent.compare(low.detach())
        if step < steps:
            ascent.move(gradient)
    return ascent.best


class _MirrorAscent:
    """Where an ascent on weights p (B, G, K) stands, and the best of those seen."""

    def __init__(self, goal: Goal, p: Tensor) -> None:
        self._goal, self._p, self.best = goal, p, p
        self._value = torch.full_like(p[..., 0], -torch.inf)

    def leaf(self) -> Tensor:
        """The weights, to be differentiated by."""
        return self._p.detach().requires_grad_()

    def compare(self, low: Tensor) -> Tensor:
        """Take in lower bounds (B, G) of p·z; where (B, G) these weights are the best so far."""
        value = low + entropy(self._p) if self._goal.soft else low
        better = value > self._value
        self._value = torch.where(better, value, self._value)
        self.best = torch.where(better.unsqueeze(2), self._p, self.best)
        return better

    def move(self, gradient: Tensor) -> None:
        """One step along the gradient of the lower bounds of p·z."""
        # ∂H/∂p = −log p − 1; the constant cancels in the normalisation. Without H nothing draws p
        # back from a corner, which the floor lets it leave.
        share, floor = (1 - _RATE, 1e-300) if self._goal.soft else (1.0, 1e-3)
        moved = share * self._p.clamp_min(floor).log() + _RATE * gradient
        self._p = torch.where(self._goal.members, moved, -torch.inf).softmax(2)


def improve_weights_and_slopes(
    relaxation: NativeRelaxation, goal: Goal, p: Tensor, steps: int
) -> tuple[NativeRelaxation, Tensor]:
    """`improve_weights` with the slopes of the lower lines optimised at the same time (α-CROWN).

    CROWN's own slopes are tried first, so the result is never worse than theirs.

    Returns:
        The relaxation with the slopes, and the weights (B, G, K).
    """
    ascent = _MirrorAscent(goal, improve_weights(relaxation, goal, p, steps))
    with torch.no_grad():
        ascent.compare(relaxation.lower(lower_rows(goal, ascent.best)[0]))
    slopes = SlopeAscent(
        relaxation.graph, first_slopes(relaxation.graph, relaxation.preactivations, p.shape[1])
    )
    best_slopes = {i: _usual(relaxation, i, p.shape[1]) for i in slopes.slopes}
    for step in range(steps + 1):
        leaves = slopes.leaves()
        with torch.enable_grad():
            leaf = ascent.leaf()
            low = replace(relaxation, slopes=leaves).lower(lower_rows(goal, leaf)[0])
            gradient, *others = torch.autograd.grad(
                low.sum(), [leaf, *leaves.values()], allow_unused=True, materialize_grads=True
            )
        better = ascent.compare(low.detach())
        best_slopes = {
            i: torch.where(better.reshape(*better.shape, *[1] * (s.ndim - 2)), slopes.slopes[i], s)
            for i, s in best_slopes.items()
        }
        if step < steps:
            ascent.move(gradient)
            slopes.step(dict(zip(leaves, others, strict=True)))
    return replace(relaxation, slopes=best_slopes), ascent.best


def _usual(relaxation: NativeRelaxation, node: int, count: int) -> Tensor:
    """CROWN's own lower slopes, (B, R, *shape)."""
    low, high = relaxation.preactivations[node]
    op = relaxation.graph.nodes[node].op
    assert isinstance(op, Activation)
    # Of two plain numbers `where` makes float32, whose 0.01 lies below the true lower line.
    slope = torch.where(high > -low, torch.ones_like(low), op.negative_slope)
    return slope.unsqueeze(1).repeat(1, count, *[1] * (low.ndim - 1))
