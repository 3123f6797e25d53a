"""Radii by coupled bounds: a search in float32, then one pass in float64 with proven prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.backward import (
    RowBound,
    bound_rows,
    first_variables,
    value_and_slope,
)
from greg_cert.verify.bounds.coupled.ball_boxes import Moved, preactivations
from greg_cert.verify.bounds.coupled.charges import ProvenPrices
from greg_cert.verify.bounds.coupled.neurons import Variables
from greg_cert.verify.bounds.interval import all_finite
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.rounding import absolute_terms
from greg_cert.verify.radius.coupled.charging import charged_activations
from greg_cert.verify.radius.coupled.row_search import (
    WEIGHTS,
    Boxes,
    CoupledEffort,
    Search,
    reach_of,
    weights_of,
)
from greg_cert.verify.radius.duality import allowance, lower_rows
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.problem import Batch, Problem

GUESS = 0.4  # of the first-order radius, where the search begins
_CLIMBS, _CLIMB = 5, 1.04  # larger balls that are proven before a cliff, and how much larger
_SHARES = (0.97, 0.85, 0.65)  # of the ball that are proven, the next where one falls short
_SHORT = 0.9


class CoupledRadius:
    """Proven ℓ2 radii of one graph by coupled bounds, for goals that one row decides."""

    def __init__(self, problem: Problem, effort: CoupledEffort) -> None:
        self.graph, self.max_radius = problem.pooled, problem.max_radius
        self._draft, self._effort = problem.pooled_draft, effort
        self.boxes = Boxes(self.graph)
        self._charged = charged_activations(self.graph)
        self.scouts = Boxes(self._draft, self.boxes.norms)

    def search(self, batch: Batch, goal: Goal, charged: frozenset[int] | None = None) -> Search:
        """A search that has not begun, by all charges that can be proven or by these."""
        charged = self._charged if charged is None else charged
        return Search(self._draft, self.scouts, charged, batch, goal)

    def __call__(self, batch: Batch, goal: Goal, most: Tensor | None = None) -> Tensor:
        """Radii (B,) within which `goal` is proven to hold.

        Args:
            batch: the centres; the search begins at the radii known.
            goal: what to prove; it has to stay above its level, and be one log-sum-exp or maximum.
            most: (B,) radii beyond which none is of use.
        """
        if most is None:
            most = torch.full_like(batch.first_order, self.max_radius)
        guess, known = batch.first_order * GUESS, batch.known
        if known is not None:
            guess = torch.maximum(guess, known)
        usable = guess.isfinite() & (guess > 0)
        ball = torch.minimum(torch.where(usable, guess, self.max_radius / 8), most)
        batch = batch.knowing(torch.zeros_like(ball) if known is None else known)
        radii, behind = self._searched(self._charged, batch, goal, ball, most)
        if behind.any():
            rest = behind.nonzero().squeeze(1)
            begun = (batch.of(rest), goal.of(rest), ball[rest], most[rest])
            radii[rest], _ = self._searched(frozenset(), *begun)
        return radii

    def _searched(
        self, charged: frozenset[int], batch: Batch, goal: Goal, ball: Tensor, most: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Proven radii (B,) by charges on some activations, and which samples gave them up (B,)."""
        search = self.search(batch, goal, charged)
        ball = search.run(ball, most, self._effort, batch.known if charged else None)
        radii, variables = torch.zeros_like(ball), search.found

        def attempt(open_: Tensor, tried: Tensor) -> Tensor:
            own = {k: v[open_] for k, v in variables.items()}
            found = self._prove(batch.x[open_], tried, goal.of(open_), own)
            radii[open_] = torch.maximum(radii[open_], torch.minimum(found, tried))
            return found

        open_ = ((search.reached > 0) & ~search.behind).nonzero().squeeze(1)
        for share in _SHARES:
            if len(open_) == 0:
                break
            # A bound that reaches far beyond its ball needs no room.
            attempt(open_, torch.minimum(ball, share * torch.maximum(ball, search.reached))[open_])
            open_ = open_[radii[open_] < _SHORT * ball[open_] * share]
        # Before a cliff the search ends on a ball far beyond which the bound still reaches.
        open_ = (search.at_cliff & (radii > 0) & (radii < most)).nonzero().squeeze(1)
        for _ in range(_CLIMBS):
            if len(open_) == 0:
                break
            tried = torch.minimum(radii[open_] * _CLIMB, most[open_])
            open_ = open_[attempt(open_, tried) >= tried]
        return radii, search.behind

    @torch.no_grad()
    def _prove(self, x: Tensor, radii: Tensor, goal: Goal, found: Variables) -> Tensor:
        """Reach (B,) of the bound that these variables give, in float64; or CROWN's, if longer."""
        moved = self.boxes(x, radii)
        terms = absolute_terms(self.graph, preactivations(self.graph, moved), x, radii)
        crown = {**first_variables(self.graph, moved, 1), WEIGHTS: found[WEIGHTS]}
        reach = torch.zeros_like(radii)
        for variables in (found, crown):
            gap, slope, bound = proven_gap(self.graph, x, moved, goal, variables, terms)
            reach = torch.maximum(reach, reach_of(gap, slope, bound.curvature).squeeze(1))
        return torch.where(goal.level == -torch.inf, torch.inf, reach)


@torch.no_grad()
def proven_gap(
    graph: Graph,
    x: Tensor,
    moved: Sequence[Moved],
    goal: Goal,
    found: Variables,
    terms: Mapping[int, Tensor],
) -> tuple[Tensor, Tensor, RowBound]:
    """As `Search.gap`, in float64 with proven prices and rounding allowed for.

    The gap is 0 where a box is not finite, so that nothing follows. `found` are the variables of a
    search, and its prices; terms are as of `bound_rows`.
    """
    variables = {key: values.double() for key, values in found.items()}
    rows, constant = lower_rows(goal, weights_of(variables[WEIGHTS], goal))
    bound = bound_rows(graph, moved, rows, variables, ProvenPrices(), terms)
    value, slope = value_and_slope(bound, x)
    gap = value + constant - allowance(value, goal)
    sure = all_finite(m.box for m in moved).unsqueeze(1)
    return torch.where(sure, gap, 0.0), slope, bound
