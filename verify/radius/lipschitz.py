"""Radii from proven Lipschitz constants: the global one, then the paper's ε*, and its integral."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from greg_cert.verify.bounds.engine import Engine
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.rounding import score_rounding
from greg_cert.verify.lipschitz import LipschitzBound, check_form
from greg_cert.verify.lipschitz.forward_error import ForwardError
from greg_cert.verify.lipschitz.global_bound import global_constant
from greg_cert.verify.lipschitz.global_radius import first_order_reach, gap_left, score_error
from greg_cert.verify.radius.problem import Batch, Problem
from greg_cert.verify.radius.search import RadiusSearch

_GUESS = 0.25  # of the first-order radius, where the ladder begins
_STEPS = 8  # of the integral
_OWN_ORDER = 4.0
_BEYOND = 1.6  # times ε*, where the integral ends


class LipschitzRadius:
    """Proven radii of one network by L_S.

    Args:
        problem: the network.
        form: of the local constant, as in `lipschitz_bound`.
        integrate: let the margin be used up by ∫ L(t) dt where that is further.
        rounds: balls tried with a constant of their own; 0 for the constant of the whole space.
        tolerance: relative, at which a sample is done.
    """

    def __init__(
        self,
        problem: Problem,
        form: str = "hybrid",
        integrate: bool = True,
        rounds: int = 12,
        tolerance: float = 0.01,
    ) -> None:
        graph, engines, score = problem.graph, problem.linear, problem.score
        self._graph, self._norm, self._max_radius = graph, problem.norm, problem.max_radius
        self._form, self._integrate = check_form(form), integrate
        self._rounds, self._tolerance = rounds, tolerance
        self._prover = (graph, engines.prover, LipschitzBound(graph, score))
        self._scout = (engines.draft, engines.scout, LipschitzBound(engines.draft, score))
        self._careful = (graph, engines.careful, self._prover[2])
        self._everywhere = global_constant(graph, score, problem.norm)
        self._forward = ForwardError(graph)

    def __call__(self, batch: Batch, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Radii (B,) and the L_S (B,) that gave them; NaN where there is none.

        (γ − S)/L̄ by the constant of the whole space comes first, at any depth; then balls are tried
        from there on with a constant of their own.

        Args:
            batch: the centres.
            gap: (B,) distance of the score to the threshold, > 0 or 0.
        """
        x = batch.x
        # Either bounds it, by absolute terms or, as at depth, by norms; the model sums in an order
        # of its own, of which the second knows nothing.
        rounding = score_rounding(self._graph, x)
        rounding = rounding.fmin(_OWN_ORDER * score_error(self._graph, *self._forward(x)))
        sure = first_order_reach(self._everywhere, gap, rounding).clamp(max=self._max_radius)
        left = sure < self._max_radius

        def scouted(bounds: _Bounds, members: Tensor, radii: Tensor, turn: int) -> Tensor:
            constant = self._constant(bounds, x[members], radii)
            return first_order_reach(constant, gap[members], rounding[members])

        guess = (batch.first_order * _GUESS).maximum(sure)
        search = RadiusSearch(guess, self._max_radius)
        draft, careful = partial(scouted, self._scout), partial(scouted, self._careful)
        search.climb_by_draft(draft, careful, self._rounds, self._tolerance, left)
        radii = sure.clone()
        constant = torch.full_like(gap, self._everywhere).masked_fill(sure == 0, torch.nan)
        members = (search.best > 0).nonzero().squeeze(1)
        if len(members):
            ball = search.best_at[members]
            slope = self._constant(self._prover, x[members], ball)
            reach = first_order_reach(slope, gap[members], rounding[members]).minimum(ball)
            further = (reach > sure[members]).nonzero().squeeze(1)
            radii[members[further]], constant[members[further]] = reach[further], slope[further]
        if self._integrate and len(members):
            self._integrated(x, gap_left(gap, rounding), radii, constant, members)
        return radii, constant

    def _integrated(
        self, x: Tensor, left: Tensor, radii: Tensor, constant: Tensor, members: Tensor
    ) -> None:
        """Raise radii, in place, to where Σ Δt·L(t) uses up the margin.

        S(x′) − S(x) ≤ ∫ L(t) dt up to ‖x′ − x‖, and L grows with t: near the centre, where the
        network is close to linear, the score cannot rise as fast as at the rim.
        """
        end = (_BEYOND * radii[members]).clamp(max=self._max_radius)
        start, used = torch.zeros_like(end), torch.zeros_like(end)
        for step in range(1, _STEPS + 1):
            if len(members) == 0:
                return
            rim = end * (step / _STEPS)
            slope = self._constant(self._prover, x[members], rim)
            room = (left[members] - used).clamp_min(0.0)
            whole = slope * (rim - start) <= room
            radius = torch.where(whole, rim, start + room / slope).nan_to_num(nan=0.0)
            radius = torch.minimum(radius, rim)
            better = radius > radii[members]
            radii[members] = torch.where(better, radius, radii[members])
            constant[members] = torch.where(better, slope, constant[members])
            used = used + slope * (rim - start)
            members, end, start, used = members[whole], end[whole], rim[whole], used[whole]

    def _constant(self, bounds: _Bounds, x: Tensor, radii: Tensor) -> Tensor:
        """L_S (B,) over balls of `radii` (B,) about x (B, ...), in float64."""
        graph, engine, lipschitz = bounds
        x, radii = x.to(graph.dtype), radii.to(graph.dtype)
        with torch.no_grad():
            relaxation = engine.relax(x, radii, self._norm)
            found = lipschitz(relaxation, x, self._norm, self._form).double()
        return found.clamp(max=self._everywhere)


_Bounds = tuple[Graph, Engine, LipschitzBound]
