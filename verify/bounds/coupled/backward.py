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
from greg_cert.verify.bounds.coupled.charges import Prices
from greg_cert.verify.bounds.coupled.neurons import (
    NeuronMinima,
    Rows,
    Variables,
    best_ball,
    bound_activation,
)
from greg_cert.verify.bounds.crown import operand_rows, relax_activation, through_windows
from greg_cert.verify.bounds.linear_bound import ROUNDING, slope_norms
from greg_cert.verify.bounds.relax_pool import relax_pool
from greg_cert.verify.bounds.relax_smooth import relax_smooth
from greg_cert.verify.graph.max_pool import MaxPool, share_range
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Affine,
    Computed,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Smooth,
)

Price = Callable[[int, Conv | Linear, Tensor, Tensor, Tensor | None], Tensor]
"""(node, layer, D (B, R, …), what moves at all (B, …), S (B, R, …) or None) to τ (B, R)."""

EachActivation = Callable[[int, Activation, NeuronMinima, Moved], None]
"""Takes (node, activation, its bound, what it reads) of each activation on the way."""

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
    each: EachActivation | None = None,
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
            where rounding is not allowed for, as in float32.
        each: called with the bound of each activation.
    """
    offset = size = lost = zero = rows.new_zeros(rows.shape[:2])
    reached: dict[int, Rows] = {len(graph.nodes) - 1: Rows(rows)}

    def give(node: int, given: Rows) -> None:
        reached[node] = reached[node] + given if node in reached else given

    for i, node in reversed(graph.computed):
        if i not in reached:
            continue
        above, first = reached.pop(i), node.inputs[0]
        a, charge, times, source = above.slope, above.charge, above.excess, moved[first]
        match node.op:
            case Affine() as op:
                offset = offset + op.constant(a)
                if terms is not None:
                    size = size + _sum(a.abs(), terms[i])
                if charge is not None:
                    charge, tau = _passed(i, op, charge, source, variables, price)
                    if tau is not None and ("price", i) in variables:
                        times = (tau / variables["price", i]).nan_to_num(nan=1.0, posinf=1.0)
                give(first, Rows(op.transposed(a), charge, times))
            case Activation() as op:
                found = bound_activation(
                    i, op, above, source, variables, rounding=terms is not None
                )
                if each is not None:
                    each(i, op, found, source)
                offset = offset + found.gain
                if found.size is not None and found.lost is not None:
                    size, lost = size + found.size, lost + found.lost
                give(first, found.below)
            case Smooth(kind):
                below, low, over, high = (t.unsqueeze(1) for t in relax_smooth(kind, *source.box))
                positive, negative = a.clamp(min=0.0), a.clamp(max=0.0)
                for part, line in ((positive, low), (negative, high)):
                    offset = offset + _sum(part, line)
                    size = size + _sum(part.abs(), line.abs())
                if charge is not None:  # |Δσ| ≤ steepest·|Δz|
                    charge = _up(charge * moved[i].mask.unsqueeze(1) ** 2)
                give(first, Rows(positive * below + negative * over, charge, times))
            case MaxPool() as op:
                below, over, line, absolute = relax_pool(op, *source.box)
                offset = offset + _sum(a.clamp(max=0.0), line)
                size = size + _sum(a.abs(), absolute)
                if charge is not None:  # Δ² of an output is at most that of some live member
                    live = share_range(op, *source.box)[1].unsqueeze(1)
                    charge = _up(op.spread((charge.unsqueeze(-3) * live).unbind(-3)))
                give(first, Rows(through_windows(op, a, below, over), charge, times))
            case Add():
                for j, own in zip(node.inputs, _split(i, node, charge, variables), strict=True):
                    give(j, Rows(a, own, times))
            case Concat() | Flatten():
                parts = operand_rows(graph, node, a, 2)
                charges: Sequence[Tensor | None] = [None] * len(parts)
                if charge is not None:
                    charges = operand_rows(graph, node, charge, 2)
                for j, part, own in zip(node.inputs, parts, charges, strict=True):
                    give(j, Rows(part, own, times))
            case _:
                assert_never(node.op)
    last = reached.get(0, Rows(rows.new_zeros(*rows.shape[:2], *graph.input_shape)))
    curvature = zero if last.charge is None else last.charge.flatten(2).amax(2)
    return RowBound(offset, last.slope, curvature, size, lost)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """Σ one·other of (B, R, …) and (B, R or 1, …) or (B, …), (B, R)."""
    if other.ndim < one.ndim:
        other = other.unsqueeze(1)
    return (one * other).flatten(2).sum(2)


def _split(
    i: int, node: Computed, charge: Tensor | None, variables: Variables
) -> Sequence[Tensor | None]:
    """The charge on each operand of a sum: (Σ a_j)² ≤ Σ a_j²/w_j for w ≥ 0 of sum 1."""
    count, logits = len(node.inputs), variables.get(("join", i))
    if charge is None or logits is None:
        return [None if charge is None else count * charge] * count
    return [_up(charge * (-w).exp()) for w in logits.log_softmax(2).unbind(2)]


def _passed(
    i: int, op: Conv | Linear, charge: Tensor, source: Moved, variables: Variables, price: Price
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


def _up(charge: Tensor) -> Tensor:
    """A charge, rounded up by far more than its last operations lost."""
    return charge * (1 + _SLACK)


@torch.no_grad()
def bisect_balls(
    graph: Graph, moved: Sequence[Moved], rows: Tensor, variables: Variables, least: float = _LEAST
) -> dict[int, Tensor]:
    """For given slopes the best log μ (B, R) of each activation, where no charges are carried on.

    Of rows (B, R, K) of the logits; `least` is as of `best_ball`.
    """
    found: dict[int, Tensor] = {}

    def each(i: int, op: Activation, minima: NeuronMinima, source: Moved) -> None:
        found[i] = best_ball(minima, source, op, least)

    slopes = {key: values for key, values in variables.items() if key[0] in ("lower", "upper")}
    bound_rows(graph, moved, rows, slopes, Prices(), each=each)
    return found


def value_and_slope(bound: RowBound, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value (B, R) at the centres x, less what rounding may have added, and the slope's ℓ2 norm."""
    flat, slope = x.flatten(1).unsqueeze(2), bound.slope.flatten(2)
    value = bound.offset + (slope @ flat).squeeze(2)
    if x.dtype == torch.float64:
        size = bound.size + (slope.detach().abs() @ flat.abs()).squeeze(2)
        value = value - ROUNDING * torch.finfo(x.dtype).eps * size - bound.lost
    return value, slope_norms(bound.slope, 2.0)
