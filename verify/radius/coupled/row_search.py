"""The search of one row: multipliers and weights of a batch of balls, in float32.

A ball of radius ε proves r(ε) = min{ε, q(ε)}, with q where the bound made for that ball ends. While
the multipliers improve, ε moves towards q, so that both end where they meet. Prices are from below;
what is found is only where to prove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.ascent import Ascent, falling
from greg_cert.verify.bounds.coupled.backward import (
    RowBound,
    bisect_balls,
    bound_rows,
    first_variables,
    value_and_slope,
)
from greg_cert.verify.bounds.coupled.ball_boxes import Moved, ball_boxes, layer_norms
from greg_cert.verify.bounds.coupled.charges import Prices
from greg_cert.verify.bounds.coupled.neurons import NeuronMinima, Variables
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.ops import Activation, Affine, Graph
from greg_cert.verify.radius.coupled.charging import add_charges, reads_input
from greg_cert.verify.radius.duality import entropy, lower_rows
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.problem import Batch

WEIGHTS = ("weights", -1)
"""Key of the logarithms of the row's weights among the variables, (B, 1, K)."""

_LEAST_STEP, _LARGEST_STEP = 0.5, 1.5  # of ε from one round to the next
_GAIN = 1.02  # of a ball that failed, a round: multipliers improve
_FIRST_CHARGE = 0.1  # of the largest multiplier of a ball that may be of use
_FULL_STEPS = 240  # up to which steps are as long as may be
_DONE = 0.003  # of ε, by which neither ε nor q still moves
_CROWN = 2**25  # neurons × values of the widest node, up to which CROWN bounds neurons too
_SETTLING = 30  # steps of power iteration, once, at the end
_BEHIND, _AS_LARGE = 0.8, 1.5  # of the radius known: where a bound ends before on such a ball,
_FIRST_BALLS = 4  # charges are given up, if that is among the first balls


@dataclass(frozen=True)
class CoupledEffort:
    """How long the search goes on.

    Attributes:
        rounds: balls tried.
        steps: gradient steps on each.
        splits: how often a larger ball is split by the signs of neurons afterwards, where one row
            decides and CROWN's boxes cost little.
    """

    rounds: int = 12
    steps: int = 20
    splits: int = 0


class Search:
    """The state of a search: variables and prices of a batch, in float32."""

    def __init__(
        self, graph: Graph, boxes: Boxes, charged: frozenset[int], batch: Batch, goal: Goal
    ) -> None:
        self._graph, self._boxes, self._charged = graph, boxes, charged
        self._x, self._goal = batch.x.to(graph.dtype), goal.to(graph.dtype)
        self._logits = batch.logits.to(graph.dtype)
        self.reached = torch.zeros_like(batch.x.flatten(1)[:, 0])
        # The largest ball (B,) far beyond which a bound reached, and the smallest that failed.
        self._low = torch.zeros_like(self.reached)
        self._high = torch.full_like(self.reached, torch.inf)
        self.behind = torch.zeros_like(self.reached, dtype=torch.bool)
        self.prices = Prices()
        self.ascent = Ascent({})

    def run(
        self, ball: Tensor, most: Tensor, effort: CoupledEffort, known: Tensor | None = None
    ) -> Tensor:
        """The balls (B,) to be proven, at most `most` (B,), after `effort`.

        Samples whose bound ends before `known` (B,) on a ball about as large are left out, as
        `behind`, where that is among the first balls.
        """
        ball = ball.clone()
        self.ascent = Ascent(self.begin(ball))
        members = torch.arange(len(ball), device=ball.device)
        # A longer search takes smaller steps.
        full = min(1.0, math.sqrt(_FULL_STEPS / max(effort.rounds * effort.steps, 1)))
        for turn in range(effort.rounds):
            last = turn == effort.rounds - 1
            share = full * (1.0 - 0.9 * turn / max(effort.rounds - 1, 1))
            rates = falling(share, effort.steps) if last else [share] * effort.steps
            tried, before = ball[members], self.reached[members]
            reach = self.climb(members, tried, rates)
            self.reached[members] = reach
            cap = most[members]
            ball[members] = torch.minimum(self._next(members, tried, reach), cap)
            capped = (tried >= cap) & (reach >= cap)
            still = ((reach / tried - 1).abs() < _DONE) & ((reach - before).abs() < _DONE * tried)
            if turn < _FIRST_BALLS and known is not None:
                own = known[members]
                behind = (reach < _BEHIND * own) & (tried <= _AS_LARGE * own)
                self.behind[members] = behind
                still = still | behind
            members = members[~(capped | still)]
            if len(members) == 0:
                break
        return self._settled(ball)

    def _next(self, members: Tensor, tried: Tensor, reach: Tensor) -> Tensor:
        """The balls to try after these: where the bound ends, unless there is a cliff before.

        Behind many layers a bound may reach far beyond one ball and nowhere on the next. Then what
        lies between the two is halved.
        """
        low, high = self._low[members], self._high[members] * _GAIN
        share = reach / tried
        low = torch.where(share > _LARGEST_STEP, torch.maximum(low, tried), low)
        high = torch.where(share < _LEAST_STEP, torch.minimum(high, tried), high)
        self._low[members], self._high[members] = low, high
        step = tried * share.clamp(_LEAST_STEP, _LARGEST_STEP)
        off = self.at_cliff[members] & ((step <= low) | (step >= high))
        return torch.where(off, (low * high).sqrt(), step)

    def _settled(self, ball: Tensor) -> Tensor:
        """The balls, drawn back to where the bound ends once prices are taken more exactly."""
        everyone = torch.arange(len(ball), device=ball.device)
        prices = self.prices.of(everyone)
        prices.steps = _SETTLING
        with torch.no_grad():
            gap, slope, bound = self.gap(everyone, self._boxes(self._x, ball), self.found, prices)
            reach = reach_of(gap, slope, bound.curvature).squeeze(1).double()
        fallen = (reach < _LEAST_STEP * ball) & (self._low > 0)
        self.reached = torch.where(fallen, self._low, reach)
        ball = torch.where(reach < ball, (ball * reach).sqrt(), ball)
        return torch.where(fallen, self._low, ball)

    @property
    def at_cliff(self) -> Tensor:
        """Samples (B,) whose bound reached far beyond one ball and nowhere on another."""
        return (self._low > 0) & self._high.isfinite()

    @property
    def found(self) -> Variables:
        """The variables, with what the search took for the prices."""
        return with_prices(self.ascent.variables, self.prices)

    def begin(self, ball: Tensor) -> Variables:
        """CROWN's slopes, softmax weights, and charges from the best balls, added up downwards."""
        moved = self._boxes(self._x, ball)
        goal = self._goal
        weights = goal.shifted(self._logits)
        weights = weights.log_softmax(2) if goal.soft else (8 * weights).log_softmax(2)
        rows, _ = lower_rows(goal, weights_of(weights, goal))
        variables = first_variables(self._graph, moved, 1)
        balls = bisect_balls(self._graph, moved, rows, variables, _FIRST_CHARGE)
        if not self._charged:
            return {**variables, **{("ball", i): mu for i, mu in balls.items()}, WEIGHTS: weights}
        for i, node in enumerate(self._graph.nodes):
            if isinstance(node.op, Affine) and not reads_input(self._graph, i):
                source = moved[node.inputs[0]].centre
                variables["share", i] = torch.zeros_like(source).unsqueeze(1)
        norms = self._boxes.norms
        add_charges(self._graph, norms, self._charged, moved, balls, variables)
        variables[WEIGHTS] = weights
        return variables

    def climb(self, members: Tensor, ball: Tensor, rates: list[float]) -> Tensor:
        """Reach (B,) after a step of each of these rates, on balls of one radius each."""
        everyone = len(members) == len(self._x)
        ascent = self.ascent if everyone else self.ascent.of(members)
        prices = self.prices if everyone else self.prices.of(members)
        reach = self.ascend(
            members, self._boxes(self._x[members], ball), ball, ascent, prices, rates
        )
        if not everyone:
            self.ascent.put(members, ascent)
            self.prices.put(members, prices)
        return reach

    def ascend(
        self,
        members: Tensor,
        moved: Sequence[Moved],
        ball: Tensor,
        ascent: Ascent,
        prices: Prices,
        rates: list[float],
    ) -> Tensor:
        """As `climb`, on sets that lie in balls of samples, from variables of their own.

        Args:
            members: (P,) the sample that each set is about.
            moved: of every node, over the sets.
            ball: (P,) radii.
            ascent: of the sets; changed in place.
            prices: of the sets; changed in place.
            rates: of the steps.
        """
        radii = ball.to(self._x.dtype).unsqueeze(1)

        def objective(variables: Variables) -> Tensor:
            gap, slope, bound = self.gap(members, moved, variables, prices)
            with torch.no_grad():
                at = reach_of(gap, slope, bound.curvature)
                at = torch.minimum(torch.maximum(at, radii / 2), radii)
            return gap - at * slope - at**2 / 2 * bound.curvature

        ascent.climb(objective, rates)
        with torch.no_grad():
            gap, slope, bound = self.gap(members, moved, ascent.variables, prices)
        return reach_of(gap, slope, bound.curvature).squeeze(1).double()

    def gap(
        self,
        members: Tensor,
        moved: Sequence[Moved],
        variables: Variables,
        prices: Prices,
        costs: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, RowBound]:
        """Margin (B, 1) at the centres by the bound, the norm of its slope, and the bound."""
        goal = self._goal.of(members)
        p = weights_of(variables[WEIGHTS], goal)
        rows, constant = goal.rows(p), -goal.level.unsqueeze(1)
        if goal.soft:
            constant = constant + entropy(p)

        def each(i: int, op: Activation, found: NeuronMinima, source: Moved) -> None:
            if costs is not None:
                costs[i] = found.costs(op, source)

        bound = bound_rows(self._graph, moved, rows, variables, prices, each=each)
        value, slope = value_and_slope(bound, self._x[members])
        return value + constant, slope, bound


class Boxes:
    """How far every node may move over balls, with CROWN's own boxes where they cost little."""

    def __init__(self, graph: Graph, norms: dict[int, float] | None = None) -> None:
        self.norms = layer_norms(graph) if norms is None else norms
        self._graph = graph
        self._crown = NativeEngine(graph) if self.cheap(graph) else None

    @staticmethod
    def cheap(graph: Graph) -> bool:
        """Whether CROWN's boxes cost little."""
        neurons = sum(math.prod(graph.nodes[i].shape) for i in graph.activations)
        return neurons * max(math.prod(node.shape) for node in graph.nodes) <= _CROWN

    def __call__(self, x: Tensor, radii: Tensor) -> list[Moved]:
        """One `Moved` a node, for balls of `radii` (B,) about x (B, ...)."""
        radii = radii.to(x.dtype)
        known = None
        if self._crown is not None:
            known = self._crown.relax(x, radii, 2.0).preactivations
        return ball_boxes(self._graph, self.norms, x, radii, known)


def with_prices(variables: Variables, prices: Prices) -> Variables:
    """The variables, with what a search last took for the prices."""
    return {**variables, **{("price", i): tau for i, tau in prices.last.items()}}


def weights_of(logarithms: Tensor, goal: Goal) -> Tensor:
    """Weights p (B, 1, K) on the simplex of the goal's members."""
    return torch.where(goal.members, logarithms, -torch.inf).softmax(2)


def reach_of(gap: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
    """The largest r with slope·r + ½·curvature·r² ≤ gap; 0 where the gap is not positive."""
    gap = gap.clamp_min(0.0)
    # Written so that nothing cancels; a flat bound reaches anywhere.
    root = (slope**2 + 2 * curvature * gap).sqrt()
    found = torch.where(gap > 0, 2 * gap / (slope + root), 0.0)
    return found.nan_to_num(nan=0.0, posinf=torch.finfo(gap.dtype).max)
