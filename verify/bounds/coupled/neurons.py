"""Activations in a coupled bound: minima that are taken neuron by neuron, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.ball_boxes import Moved
from greg_cert.verify.graph.ops import Activation

Variables = dict[tuple[str, int], Tensor]
"""What is searched, by kind and node: `lower` and `upper` slopes of an activation, `charge` log λ
of it, `share` log S of what an affine layer reads, each (B, R, *shape); `join` logits of the
operands of a sum, whose softmax splits its charge, (B, R, operands, *shape); `ball` log μ and
`price` τ of a layer as the search estimated it, each (B, R)."""

_BISECTIONS = 30


@dataclass(frozen=True)
class Rows:
    """What a pass downwards has to bound at a node: rows·v − ½ Σ charge·Δv².

    Attributes:
        slope: (B, R, *shape), the rows.
        charge: (B, R, *shape), D; None for none.
        excess: (B, R) by what factor the charge exceeds what the search assumed; None for 1.
    """

    slope: Tensor
    charge: Tensor | None = None
    excess: Tensor | None = None

    def __add__(self, other: Rows) -> Rows:
        excess = self.excess
        if other.excess is not None:
            excess = other.excess if excess is None else torch.maximum(excess, other.excess)
        return Rows(self.slope + other.slope, _sum(self.charge, other.charge), excess)


@dataclass(frozen=True)
class NeuronMinima:
    """The bound of one activation: rows·σ(z) − ½ Σ D·Δσ² ≥ below, plus `gain`.

    Attributes:
        above: what was bounded.
        below: what is left to be bounded of z.
        gain: (B, R) the sum of all minima, less what the ball is paid.
        each: (B, R, *shape) the minima themselves.
        size: (B, R) terms that measure the rounding.
        lost: (B, R) what the centres' own rounding may take.
    """

    above: Rows
    below: Rows
    gain: Tensor
    each: Tensor
    size: Tensor | None
    lost: Tensor | None

    def costs(self, op: Activation, source: Moved) -> Tensor:
        """What each neuron takes off the bound beside its value at the centre, (B, R, *shape)."""
        z = source.centre.unsqueeze(1)
        return self.above.slope * op.apply(z) - self.below.slope * z - self.each


def bound_activation(
    i: int, op: Activation, above: Rows, source: Moved, variables: Variables, *, rounding: bool
) -> NeuronMinima:
    """The bound of activation i by its slopes, its charge λ and its ball's μ among the variables.

    What it reads moves as `source` says; `size` and `lost` are None unless `rounding` is asked for.
    """
    a, charge = above.slope, above.charge
    g = a * torch.where(a > 0, variables["lower", i], variables["upper", i])
    log_charge, log_ball = variables.get(("charge", i)), variables.get(("ball", i))
    carried = None if log_charge is None else log_charge.exp()
    if carried is not None and above.excess is not None:
        # What is charged from above costs more than the search knew: λ grows with it, or the
        # curvature λ − D, small where the search ended, would be negative.
        carried = carried * shaped(above.excess, a)
    # Where a neuron is the identity its slope and its charge pass, and cost nothing; unless charges
    # end here.
    bends = op.bends if carried is not None or charge is None else None
    if bends is not None:
        g = torch.where(bends, g, a)
        if carried is not None:
            carried = torch.where(bends, carried, 0.0 if charge is None else charge)
    z = source.centre.unsqueeze(1)
    weight = torch.zeros_like(a[:, :, :1]) if carried is None else carried
    paid: Tensor | None = None
    if log_ball is not None:
        mu = log_ball.exp()
        weight = weight + shaped(mu, a)
        paid = mu / 2 * source.reach.unsqueeze(1) ** 2
    below = Rows(g, carried, above.excess)
    with torch.no_grad():
        t = _minimiser(above, g, weight, source, op)
        if bends is not None:
            t = torch.where(bends, t, z)
    value, change = op.apply(t), t - z
    each = a * value - g * t + weight / 2 * change**2
    moved = op.apply(z)
    if charge is not None:
        each = each - charge / 2 * (value - moved) ** 2
    gain = each.flatten(2).sum(2)
    if paid is not None:
        gain = gain - paid
    if not rounding:
        return NeuronMinima(above, below, gain, each, None, None)
    with torch.no_grad():
        e, (low, high) = source.error.unsqueeze(1), (t.unsqueeze(1) for t in source.box)
        price = torch.zeros_like(a[:, :, :1]) if charge is None else charge
        # Of the box and the centre, which may lie outside.
        width = torch.maximum(high, z) - torch.minimum(low, z) + 2 * e
        size = a.abs() * value.abs() + g.abs() * t.abs()
        size = size + weight / 2 * change**2 + price / 2 * (value - moved) ** 2
        # The stationary point is computed from terms of this size, and moves by a unit of them.
        size = size + width * (weight * z.abs() + price * moved.abs() + g.abs() + a.abs())
        # The centre itself is known up to its own rounding.
        lost = (weight + price) * (width + e) * e
        total = size.expand_as(a).flatten(2).sum(2)
        if paid is not None:
            total = total + paid
        return NeuronMinima(above, below, gain, each, total, lost.expand_as(a).flatten(2).sum(2))


def _minimiser(above: Rows, g: Tensor, weight: Tensor, source: Moved, op: Activation) -> Tensor:
    """Where a·σ(t) − g·t + ½·weight·(t − z)² − ½·charge·(σ(t) − σ(z))² is least in the box.

    Quadratic on either side of zero: convex, with its least value at the stationary point or the
    end next to it; or concave, with its least value at an end.
    """
    a, charge, z = above.slope, above.charge, source.centre.unsqueeze(1)
    low, high = (t.unsqueeze(1) for t in source.box)
    best = point = None
    middle = op.apply(z)
    tiny = torch.finfo(a.dtype).tiny
    for side, begin, end, exists in (
        (1.0, low.clamp(min=0.0), high.clamp(min=0.0), high >= 0),
        (op.negative_slope, low.clamp(max=0.0), high.clamp(max=0.0), low <= 0),
    ):
        linear = g - side * a + weight * z
        curvature = weight
        if charge is not None:
            linear = linear - side * charge * middle
            curvature = weight - side * side * charge
        inner = linear / curvature.clamp_min(tiny)
        tried = [torch.minimum(torch.maximum(inner.nan_to_num(nan=0.0), begin), end)]
        if charge is not None:
            tried += [begin, end]
        for t in tried:
            value = (side * a - g) * t + weight / 2 * (t - z) ** 2
            if charge is not None:
                value = value - charge / 2 * (side * t - middle) ** 2
            value = torch.where(exists, value, torch.inf)
            if best is None or point is None:
                best, point = value, t.expand_as(value)
            else:
                better = value < best
                best, point = torch.where(better, value, best), torch.where(better, t, point)
    assert point is not None
    return point


def best_ball(found: NeuronMinima, source: Moved, op: Activation, least: float) -> Tensor:
    """The best log μ (B, R) of an activation without charges, for its slopes.

    The bound is concave in μ, with derivative ½ Σ Δz² at the minimiser less ½ ρ². None is looked
    for below the share `least` of the largest μ that may be of use.
    """
    above, g = Rows(found.above.slope), found.below.slope
    a, radius = above.slope, source.reach.unsqueeze(1)
    # At this μ no neuron's pull takes it further than the ball in all.
    pull = torch.maximum((g - a).abs(), (g - op.negative_slope * a).abs()).flatten(2).norm(dim=2)
    top = pull / radius.clamp_min(torch.finfo(a.dtype).tiny)
    lower = (top * least).clamp_min(1e-30).log()
    upper: Tensor = top.clamp_min(1e-29).log()
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2
        t = _minimiser(above, g, shaped(middle.exp(), a), source, op)
        change = (t - source.centre.unsqueeze(1)).flatten(2)
        far = torch.linalg.vector_norm(change, dim=2) > radius
        lower, upper = torch.where(far, middle, lower), torch.where(far, upper, middle)
    return upper


def shaped(numbers: Tensor, like: Tensor) -> Tensor:
    """(B, R) as (B, R, 1, …), to go with `like`."""
    return numbers.reshape(*numbers.shape, *[1] * (like.ndim - numbers.ndim))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
