"""Linear bounds over ℓ2 balls that know what a ball is: neurons cannot all move at once.

CROWN bounds neurons one by one. Here, for a row c of the logits, each activation σ(z) is bounded by

    c·σ(z) ≥ g·z + min over the box of { c·σ(z) − g·z + ½ Σ λ_i Δz_i² − ½ Σ D_i Δσ_i² }
             − ½ Σ λ_i Δz_i² + ½ Σ D_i Δσ_i²,

with Δ the change from the centre of the ball, for any g, λ ≥ 0 and D ≥ 0; the minimum is taken
neuron by neuron. The last two sums are charges. −½ Σ λ_i Δz_i² is carried on to the layer below:
where z = W·u + b, Δzᵀ diag(λ) Δz ≤ τ·Δuᵀ diag(S) Δu (`charges`), which becomes the D of that
layer's own activations, until at the input ‖Δx‖ ≤ ε ends it; at a sum (Σ Δ_j)² ≤ Σ Δ_j²/w_j for any
w ≥ 0 of sum 1 splits it. Or a part μ of each λ_i is paid at
once, by ½ μ ρ² ≥ ½ μ ‖Δz‖², with ρ from `ball_boxes`. λ = 0 is CROWN; μ alone, without boxes, is
SDP-CROWN; charges carried to the input are a diagonal form of the dual of the semidefinite
relaxation.

Every choice of g, λ, μ, S and w is sound, so that they may be searched in float32 and by any means;
the bound is proven by one pass in float64 with proven prices τ.

Sources: Chiu et al., "SDP-CROWN", ICML 2025 (a ball, one multiplier a layer); Dathathri et al.,
"Enabling Certification of Verification-Agnostic Networks via Memory-Efficient Semidefinite
Programming", NeurIPS 2020 (the dual); Fazlyab et al., "Efficient and Accurate Estimation of
Lipschitz Constants", NeurIPS 2019 (one multiplier a neuron).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.ball_boxes import Moved
from greg_cert.verify.bounds.coupled.charges import Prices, transposed
from greg_cert.verify.bounds.crown import relax_activation, through_windows
from greg_cert.verify.bounds.linear_bound import ROUNDING, slope_norms
from greg_cert.verify.bounds.relax_pool import relax_pool
from greg_cert.verify.bounds.relax_smooth import relax_smooth
from greg_cert.verify.graph.max_pool import MaxPool, share_range
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Node,
    Smooth,
)

Price = Callable[[int, Conv | Linear, Tensor, Tensor, Tensor | None], Tensor]
"""(node, layer, D (B, R, …), what moves at all (B, …), S (B, R, …) or None) to τ (B, R)."""

Variables = dict[tuple[str, int], Tensor]
"""What is searched, by kind and node: `lower` and `upper` slopes of an activation, `charge` log λ
of it, `share` log S of what an affine layer reads, each (B, R, *shape); `join` logits of the
operands of a sum, whose softmax splits its charge, (B, R, operands, *shape); `ball` log μ and
`price` τ of a layer as the search estimated it, each (B, R)."""

_BISECTIONS = 30
_LEAST = 1e-12  # relative, of μ
_SLACK = 1e-9


@dataclass(frozen=True)
class RowBound:
    """rows·f(x′) ≥ offset + slope·x′ − ½·curvature·‖x′ − x‖², over each ball.

    Attributes:
        offset: (B, R).
        slope: (B, R, *input_shape).
        curvature: (B, R) at least 0.
        size: (B, R) sum of absolute terms, which measures the rounding of the others.
        lost: (B, R) what the centres' own rounding may take of the offset.
    """

    offset: Tensor
    slope: Tensor
    curvature: Tensor
    size: Tensor
    lost: Tensor


def first_variables(graph: Graph, moved: Sequence[Moved], rows: int) -> Variables:
    """CROWN's slopes for `rows` rows a sample; no charges."""
    found: Variables = {}
    for i in graph.activations:
        op, source = graph.nodes[i].op, graph.nodes[i].inputs[0]
        if isinstance(op, Activation):
            low, high, _ = relax_activation(*moved[source].box, op.negative_slope)
            found["lower", i], found["upper", i] = _rows(low, rows), _rows(high, rows)
    return found


def _rows(values: Tensor, rows: int) -> Tensor:
    return values.unsqueeze(1).repeat(1, rows, *[1] * (values.ndim - 1))


def bound_rows(
    graph: Graph,
    moved: Sequence[Moved],
    rows: Tensor,
    variables: Variables,
    price: Price,
    terms: Mapping[int, Tensor] | None = None,
    balls: dict[int, Tensor] | None = None,
    least: float = 0.0,
    costs: dict[int, Tensor] | None = None,
) -> RowBound:
    """The bound of rows (B, R, K) of the logits for these variables; differentiable in all of them.

    Args:
        graph: the network.
        moved: of every node, by `ball_boxes`.
        rows: of the logits.
        variables: as found by a search; activations without a `charge`, layers without a `share`
            and sums without a `join` are taken with λ = 0, S = 1 and equal w.
        price: τ of a layer.
        terms: for each affine node the absolute terms that it sums, as in `absolute_terms`; None
            where nobody asks for the rounding, as in float32.
        balls: to be filled with the best log μ (B, R) of each activation by itself.
        least: as of `bisect_balls`.
        costs: to be filled with what each neuron of an activation takes off the bound beside its
            value at the centre, (B, R, *shape).
    """
    batch, count = rows.shape[:2]
    zero = rows.new_zeros(batch, count)
    offset, size, lost = zero, zero, zero
    slopes: dict[int, Tensor] = {len(graph.nodes) - 1: rows}
    charges: dict[int, Tensor] = {}
    excess: dict[int, Tensor] = {}  # by what factor a charge exceeds what the search assumed

    def give(node: int, slope: Tensor, charge: Tensor | None, times: Tensor | None = None) -> None:
        slopes[node] = slopes[node] + slope if node in slopes else slope
        if charge is not None:
            charges[node] = charges[node] + charge if node in charges else charge
        if times is not None:
            excess[node] = torch.maximum(excess[node], times) if node in excess else times

    for i in range(len(graph.nodes) - 1, 0, -1):
        if i not in slopes:
            continue
        a, charge, node = slopes.pop(i), charges.pop(i, None), graph.nodes[i]
        times = excess.pop(i, None)
        match node.op:
            case Conv() | Linear():
                source = node.inputs[0]
                bias = a.sum((-2, -1)) @ node.op.bias if a.ndim == 5 else a @ node.op.bias
                offset = offset + bias
                if terms is not None:
                    size = size + _sum(a.abs(), terms[i])
                passed = None
                if charge is not None:
                    passed, tau = _passed(i, node.op, charge, moved[source], variables, price)
                    if tau is not None and ("price", i) in variables:
                        times = (tau / variables["price", i]).nan_to_num(nan=1.0, posinf=1.0)
                give(source, transposed(node.op, a), passed, times)
            case Activation():
                g, carried, gain, rounding = _activation(
                    *(i, node.op, a, charge, moved[node.inputs[0]], variables, times),
                    rounding=terms is not None,
                    costs=costs,
                )
                if balls is not None:
                    balls[i] = _best_ball(a, g, moved[node.inputs[0]], node.op, least)
                offset = offset + gain
                if rounding is not None:
                    size, lost = size + rounding[0], lost + rounding[1]
                give(node.inputs[0], g, carried, times)
            case Smooth(kind):
                box = moved[node.inputs[0]].box
                below, low, above, high = (t.unsqueeze(1) for t in relax_smooth(kind, *box))
                positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
                for part, line in ((positive, low), (negative, high)):
                    offset = offset + _sum(part, line)
                    size = size + _sum(part.abs(), line.abs())
                if charge is not None:  # |Δσ| ≤ steepest·|Δz|
                    charge = _up(charge * moved[i].mask.unsqueeze(1) ** 2)
                give(node.inputs[0], positive * below + negative * above, charge, times)
            case MaxPool() as op:
                box = moved[node.inputs[0]].box
                below, above, line, absolute = relax_pool(op, *box)
                offset = offset + _sum(a.clamp(max=0.0), line)
                size = size + _sum(a.abs(), absolute)
                if charge is not None:  # Δ² of an output is at most that of some live member
                    live = share_range(op, *box)[1].unsqueeze(1)
                    charge = _up(op.spread((charge.unsqueeze(-3) * live).unbind(-3)))
                give(node.inputs[0], through_windows(op, a, below, above), charge, times)
            case Add():
                for j, own in zip(node.inputs, _split(i, node, charge, variables), strict=True):
                    give(j, a, own, times)
            case Concat():
                sizes = [graph.nodes[j].shape[0] for j in node.inputs]
                parts = [None] * len(sizes) if charge is None else charge.split(sizes, dim=2)
                for j, part, own in zip(node.inputs, a.split(sizes, dim=2), parts, strict=True):
                    give(j, part, own, times)
            case Flatten():
                shape = graph.nodes[node.inputs[0]].shape
                own = None if charge is None else charge.unflatten(2, shape)
                give(node.inputs[0], a.unflatten(2, shape), own, times)
            case Input():
                raise AssertionError("no pass goes beyond the input")
            case _:
                assert_never(node.op)
    slope = slopes.get(0)
    if slope is None:
        slope = rows.new_zeros(batch, count, *graph.input_shape)
    curvature = charges[0].flatten(2).amax(2) if 0 in charges else zero
    return RowBound(offset, slope, curvature, size, lost)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """Σ one·other of (B, R, …) and (B, R or 1, …) or (B, …), (B, R)."""
    if other.ndim < one.ndim:
        other = other.unsqueeze(1)
    return (one * other).flatten(2).sum(2)


def _split(
    i: int, node: Node, charge: Tensor | None, variables: Variables
) -> Sequence[Tensor | None]:
    """The charge on each operand of a sum: (Σ a_j)² ≤ Σ a_j²/w_j for w ≥ 0 of sum 1."""
    count, logits = len(node.inputs), variables.get(("join", i))
    if charge is None or logits is None:
        return [None if charge is None else count * charge] * count
    return [_up(charge * (-w).exp()) for w in logits.log_softmax(2).unbind(2)]


def _passed(
    i: int,
    op: Conv | Linear,
    charge: Tensor,
    source: Moved,
    variables: Variables,
    price: Price,
) -> tuple[Tensor, Tensor | None]:
    """The charge on what an affine layer reads, (B, R, *shape), and τ (B, R) where it has one."""
    if isinstance(op, Conv) and op.is_diagonal:
        return _up(charge * op.weight.reshape(-1, 1, 1) ** 2), None
    log_share = variables.get(("share", i))
    share = None if log_share is None else log_share.exp()
    # What cannot move is left out; how steep the rest is does not matter to their changes.
    alive = (source.mask > 0).to(charge.dtype)
    tau = _up(price(i, op, charge, alive, share))
    shaped, alive = tau.reshape(*tau.shape, *[1] * (alive.ndim - 1)), alive.unsqueeze(1)
    return shaped * (alive if share is None else alive * share), tau


def _activation(
    i: int,
    op: Activation,
    a: Tensor,
    charge: Tensor | None,
    source: Moved,
    variables: Variables,
    times: Tensor | None,
    *,
    rounding: bool,
    costs: dict[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, Tensor] | None]:
    """One activation: g, the charge on z, the sum of minima, and the terms and loss of rounding."""
    g = a * torch.where(a > 0, variables["lower", i], variables["upper", i])
    log_charge, log_ball = variables.get(("charge", i)), variables.get(("ball", i))
    carried = None if log_charge is None else log_charge.exp()
    if carried is not None and times is not None:
        # What is charged from above costs more than the search knew: λ grows with it, or the
        # curvature λ − D, small where the search ended, would be negative.
        carried = carried * times.reshape(*times.shape, *[1] * (a.ndim - 2))
    # Where a neuron is the identity its slope and its charge pass, and cost nothing; unless charges
    # end here.
    bends = op.bends if carried is not None or charge is None else None
    if bends is not None:
        g = torch.where(bends, g, a)
        if carried is not None:
            carried = torch.where(bends, carried, 0.0 if charge is None else charge)
    z, e = source.centre.unsqueeze(1), source.error.unsqueeze(1)
    low, high = (t.unsqueeze(1) for t in source.box)
    weight = torch.zeros_like(a[:, :, :1]) if carried is None else carried
    mu = None
    if log_ball is not None:
        mu = log_ball.exp()
        weight = weight + mu.reshape(*mu.shape, *[1] * (a.ndim - 2))
    with torch.no_grad():
        t = _minimiser(a, g, weight, charge, low, high, z, op)
        if bends is not None:
            t = torch.where(bends, t, z)
    value, change = op.apply(t), t - z
    terms = a * value - g * t + weight / 2 * change**2
    moved = op.apply(z)
    if charge is not None:
        terms = terms - charge / 2 * (value - moved) ** 2
    if costs is not None:
        costs[i] = a * moved - g * z - terms
    gain = terms.flatten(2).sum(2)
    if mu is not None:
        gain = gain - mu / 2 * source.reach.unsqueeze(1) ** 2
    if not rounding:
        return g, carried, gain, None
    with torch.no_grad():
        price = torch.zeros_like(a[:, :, :1]) if charge is None else charge
        # Of the box and the centre, which may lie outside.
        width = torch.maximum(high, z) - torch.minimum(low, z) + 2 * e
        size = a.abs() * value.abs() + g.abs() * t.abs()
        size = size + weight / 2 * change**2 + price / 2 * (value - moved) ** 2
        # The stationary point is computed from terms of this size, and moves by a unit of them.
        size = size + width * (weight * z.abs() + price * moved.abs() + g.abs() + a.abs())
        # The centre itself is known up to its own rounding.
        unsure = (weight + price) * (width + e) * e
        total = size.expand_as(a).flatten(2).sum(2)
        if mu is not None:
            total = total + mu / 2 * source.reach.unsqueeze(1) ** 2
        return g, carried, gain, (total, unsure.expand_as(a).flatten(2).sum(2))


def _up(charge: Tensor) -> Tensor:
    """A charge, rounded up by far more than its last operations lost."""
    return charge * (1 + _SLACK)


def _minimiser(
    a: Tensor,
    g: Tensor,
    weight: Tensor,
    charge: Tensor | None,
    low: Tensor,
    high: Tensor,
    z: Tensor,
    op: Activation,
) -> Tensor:
    """Where a·σ(t) − g·t + ½·weight·(t − z)² − ½·charge·(σ(t) − σ(z))² is least in [low, high].

    Quadratic on either side of zero: convex, with its least value at the stationary point or the
    end next to it; or concave, with its least value at an end.
    """
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


@torch.no_grad()
def bisect_balls(
    graph: Graph,
    moved: Sequence[Moved],
    rows: Tensor,
    variables: Variables,
    least: float = _LEAST,
) -> dict[int, Tensor]:
    """For given slopes the best log μ (B, R) of each activation, where no charges are carried on.

    The bound is concave in each μ, with derivative ½ Σ Δz² at the minimiser less ½ ρ².

    Args:
        graph: the network.
        moved: of every node.
        rows: (B, R, K) of the logits.
        variables: the slopes.
        least: share of the largest μ that may be of use, below which none is looked for.
    """
    found: dict[int, Tensor] = {}
    slopes = {key: values for key, values in variables.items() if key[0] in ("lower", "upper")}
    bound_rows(graph, moved, rows, slopes, Prices(), balls=found, least=least)
    return found


def _best_ball(a: Tensor, g: Tensor, source: Moved, op: Activation, least: float) -> Tensor:
    z = source.centre.unsqueeze(1)
    low, high = (t.unsqueeze(1) for t in source.box)
    radius = source.reach.unsqueeze(1)
    shape = (*a.shape[:2], *[1] * (a.ndim - 2))
    # At this μ no neuron's pull takes it further than the ball in all.
    pull = torch.maximum((g - a).abs(), (g - op.negative_slope * a).abs()).flatten(2).norm(dim=2)
    top = pull / radius.clamp_min(torch.finfo(a.dtype).tiny)
    lower = (top * least).clamp_min(1e-30).log()
    upper = top.clamp_min(1e-29).log()
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2
        t = _minimiser(a, g, middle.exp().reshape(shape), None, low, high, z, op)
        far = torch.linalg.vector_norm((t - z).flatten(2), dim=2) > radius
        lower, upper = torch.where(far, middle, lower), torch.where(far, upper, middle)
    best: Tensor = upper
    return best


def value_and_slope(bound: RowBound, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value (B, R) at the centres x, less what rounding may have added, and the slope's ℓ2 norm."""
    flat, slope = x.flatten(1).unsqueeze(2), bound.slope.flatten(2)
    value = bound.offset + (slope @ flat).squeeze(2)
    if x.dtype == torch.float64:
        size = bound.size + (slope.detach().abs() @ flat.abs()).squeeze(2)
        value = value - ROUNDING * torch.finfo(x.dtype).eps * size - bound.lost
    return value, slope_norms(bound.slope, 2.0)
