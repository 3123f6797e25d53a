"""Radii by coupled bounds: the ball, the multipliers and the row are searched together.

A ball of radius ε proves r(ε) = min{ε, q(ε)}, with q where the bound made for that ball ends. While
the multipliers improve, ε moves towards q, so that both end where they meet. The search runs in
float32 with prices from below; one pass in float64 with proven prices gives the radius.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from greg_cert.verify.bounds.coupled.ball_boxes import (
    Moved,
    ball_boxes,
    layer_norms,
    preactivations,
)
from greg_cert.verify.bounds.coupled.charges import Prices, ProvenPrices
from greg_cert.verify.bounds.coupled.neurons import NeuronMinima, Variables
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import NONLINEAR, Activation, Add, Conv, Graph, Linear
from greg_cert.verify.graph.rounding import absolute_terms
from greg_cert.verify.operators.band import Band
from greg_cert.verify.operators.layers import as_convolution
from greg_cert.verify.radius.duality import allowance, entropy, lower_rows
from greg_cert.verify.radius.goals import Goal

WEIGHTS = ("weights", -1)
"""Key of the logarithms of the row's weights among the variables, (B, 1, K)."""

GUESS = 0.4  # of the first-order radius, where the search begins
_LEAST_STEP, _LARGEST_STEP = 0.5, 1.5  # of ε from one round to the next
_GAIN = 1.02  # of a ball that failed, a round: multipliers improve
_FIRST_CHARGE = 0.1  # of the largest multiplier of a ball that may be of use
_FULL_STEPS = 240  # up to which steps are as long as may be
_DONE = 0.003  # of ε, by which neither ε nor q still moves
_CROWN = 2**25  # neurons × values of the widest node, up to which CROWN bounds neurons too
_SMALLEST = 1e-4  # share of a sum's charge that an operand begins with
_SETTLING = 30  # steps of power iteration, once, at the end
_WORK = 2e10  # multiplications of the factorisations of one proof, about a second
_BEHIND, _AS_LARGE = 0.8, 1.5  # of the radius known: where a bound ends before on such a ball,
_FIRST_BALLS = 4  # charges are given up, if that is among the first balls
_CLIMBS, _CLIMB = 5, 1.04  # larger balls that are proven before a cliff, and how much larger
_SHARES = (0.97, 0.85, 0.65)  # of the ball that are proven, the next where one falls short
_SHORT = 0.9


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


class CoupledRadius:
    """Proven ℓ2 radii of one graph by coupled bounds, for goals that one row decides."""

    def __init__(
        self, graph: Graph, draft: Graph, max_radius: float, effort: CoupledEffort
    ) -> None:
        self.graph, self.max_radius, self._effort = graph, max_radius, effort
        self.boxes = Boxes(graph)
        self._draft, self._charged = draft, charged_activations(graph)
        self.scouts = Boxes(draft, self.boxes.norms)

    def search(
        self, x: Tensor, logits: Tensor, goal: Goal, charged: frozenset[int] | None = None
    ) -> Search:
        """A search that has not begun, by all charges that can be proven or by these."""
        charged = self._charged if charged is None else charged
        return Search(self._draft, self.scouts, charged, x, logits, goal)

    def __call__(
        self,
        x: Tensor,
        logits: Tensor,
        goal: Goal,
        first_order: Tensor,
        known: Tensor | None = None,
        most: Tensor | None = None,
    ) -> Tensor:
        """Radii (B,) within which `goal` is proven to hold.

        Args:
            x: (B, ...) centres, float64.
            logits: (B, K) there.
            goal: what to prove; it has to stay above its level, and be one log-sum-exp or maximum.
            first_order: (B,) a guess of the radius.
            known: (B,) radii proven before, where to begin.
            most: (B,) radii beyond which none is of use.
        """
        if most is None:
            most = torch.full_like(first_order, self.max_radius)
        guess = first_order * GUESS
        if known is not None:
            guess = torch.maximum(guess, known)
        usable = guess.isfinite() & (guess > 0)
        ball = torch.minimum(torch.where(usable, guess, self.max_radius / 8), most)
        known = torch.zeros_like(ball) if known is None else known
        radii, behind = self._searched(self._charged, x, logits, goal, ball, most, known)
        if behind.any():
            rest = behind.nonzero().squeeze(1)
            begun = (x[rest], logits[rest], goal.of(rest), ball[rest], most[rest], known[rest])
            radii[rest], _ = self._searched(frozenset(), *begun)
        return radii

    def _searched(
        self,
        charged: frozenset[int],
        x: Tensor,
        logits: Tensor,
        goal: Goal,
        ball: Tensor,
        most: Tensor,
        known: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Proven radii (B,) by charges on some activations, and which samples gave them up (B,)."""
        search = self.search(x, logits, goal, charged)
        ball = search.run(ball, most, self._effort, known if charged else None)
        radii, variables = torch.zeros_like(ball), search.found

        def attempt(open_: Tensor, tried: Tensor) -> Tensor:
            own = {k: v[open_] for k, v in variables.items()}
            found = self._prove(x[open_], tried, goal.of(open_), own)
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


def with_prices(variables: Variables, prices: Prices) -> Variables:
    """The variables, with what a search last took for the prices."""
    return {**variables, **{("price", i): tau for i, tau in prices.last.items()}}


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

    The gap is 0 where a box is not finite, so that nothing follows.

    Args:
        graph: in float64.
        x: (B, ...) centres of the balls.
        moved: of every node.
        goal: one that a row decides.
        found: variables of a search, and its prices.
        terms: as of `bound_rows`.
    """
    variables = {key: values.double() for key, values in found.items()}
    rows, constant = lower_rows(goal, weights_of(variables[WEIGHTS], goal))
    bound = bound_rows(graph, moved, rows, variables, ProvenPrices(), terms)
    value, slope = value_and_slope(bound, x)
    gap = value + constant - allowance(value, goal)
    sure = torch.stack([all_finite(m) for m in moved]).all(0).unsqueeze(1)
    return torch.where(sure, gap, 0.0), slope, bound


class Search:
    """The state of a search: variables and prices of a batch, in float32."""

    def __init__(
        self,
        graph: Graph,
        boxes: Boxes,
        charged: frozenset[int],
        x: Tensor,
        logits: Tensor,
        goal: Goal,
    ) -> None:
        self._graph, self._boxes, self._charged = graph, boxes, charged
        self._x, self._goal = x.to(graph.dtype), goal.to(graph.dtype)
        self._logits = logits.to(graph.dtype)
        self.reached = torch.zeros_like(x.flatten(1)[:, 0])
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
            if isinstance(node.op, (Conv, Linear)) and not _reads_input(self._graph, i):
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


def charged_activations(graph: Graph) -> frozenset[int]:
    """Activations whose charge can be proven: the affine layers that it passes next are small.

    The cheapest first, as long as all of them together cost no more than `_WORK` to prove.
    """
    passed: dict[int, dict[int, Band]] = {}
    for i in graph.activations:
        stack, bands = [graph.nodes[i].inputs[0]], {}
        while stack:
            node = graph.nodes[j := stack.pop()]
            if isinstance(node.op, (Conv, Linear)) and not _is_diagonal(node.op):
                bands[j] = Band.of(as_convolution(node.op))
            if j and not isinstance(node.op, Activation):  # other nodes hand on what they are given
                stack += node.inputs
        if all(band.fits for band in bands.values()):
            passed[i] = bands
    found: set[int] = set()
    proven: dict[int, Band] = {}
    for i in sorted(passed, key=lambda i: sum(band.work for band in passed[i].values())):
        together = proven | passed[i]
        if sum(band.work for band in together.values()) <= _WORK:
            found.add(i)
            proven = together
    return frozenset(found)


@torch.no_grad()
def add_charges(
    graph: Graph,
    norms: dict[int, float],
    charged: frozenset[int],
    moved: list[Moved],
    balls: dict[int, Tensor],
    variables: Variables,
) -> None:
    """First charges, in place: each activation's own best ball, and all that is passed to it."""
    passed: dict[int, Tensor] = {}  # one number (B, 1) a node, for all its elements

    def give(node: int, charge: Tensor) -> None:
        passed[node] = passed[node] + charge if node in passed else charge

    for i in range(len(graph.nodes) - 1, 0, -1):
        node, charge = graph.nodes[i], passed.pop(i, None)
        if i in balls:
            total = balls[i].exp() if charge is None else balls[i].exp() + charge
            shape = moved[i].centre.shape
            if i not in charged:
                variables["ball", i] = total.log()
                continue
            log = total.log().reshape(len(total), 1, *[1] * (len(shape) - 1))
            variables["charge", i] = log.repeat(1, 1, *shape[1:])
            give(node.inputs[0], total)
        elif charge is not None:
            if isinstance(node.op, Add):
                # In proportion to how far each may move: then the roots of what they cost add up.
                far = torch.stack([moved[j].reach for j in node.inputs], 1)
                far = torch.maximum(far, _SMALLEST * far.amax(1, keepdim=True)).log().unsqueeze(1)
                shape = moved[i].centre.shape[1:]
                logits = far.reshape(*far.shape, *[1] * len(shape)).nan_to_num()
                variables["join", i] = logits.repeat(1, 1, 1, *shape)
                for j, weight in zip(node.inputs, logits.flatten(1).softmax(1).T, strict=True):
                    give(j, charge / weight.unsqueeze(1))
                continue
            if isinstance(node.op, (Conv, Linear)):
                charge = charge * norms[i] ** 2
            elif isinstance(node.op, MaxPool):
                charge = charge * node.op.overlap
            for j in node.inputs:
                give(j, charge)


def _is_diagonal(op: Conv | Linear) -> bool:
    return isinstance(op, Conv) and op.is_diagonal


def _reads_input(graph: Graph, i: int) -> bool:
    """Whether only affine steps lie between an affine layer and the input, or it is diagonal."""
    op = graph.nodes[i].op
    if isinstance(op, (Conv, Linear)) and _is_diagonal(op):
        return True
    stack = list(graph.nodes[i].inputs)
    while stack:
        j = stack.pop()
        if isinstance(graph.nodes[j].op, NONLINEAR):
            return False
        stack += graph.nodes[j].inputs
    return True


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


def all_finite(moved: Moved) -> Tensor:
    """Whether (B,) all of a box is."""
    low, high = moved.box
    return (low.isfinite() & high.isfinite()).flatten(1).all(1)
