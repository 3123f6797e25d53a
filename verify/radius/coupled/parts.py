"""Radii of balls that are split by the signs of neurons, each part with coupled neurons.

The parts are those of `branch`: a ball beyond a half-space where violations may lie, with the signs
of some neurons given. In each part the search goes on from where it ended in the part that was
split. The centre lies outside of most parts: how far a layer moves from it, and what may move at
all, is taken from the whole ball, and only the boxes of neurons are the part's. Each part is proven
in float64 before it is split, and what was proven cuts it down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.ascent import Ascent, falling
from greg_cert.verify.bounds.coupled.ball_boxes import Moved, met, preactivations
from greg_cert.verify.bounds.coupled.charges import Prices
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import Cut, Region
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.rounding import absolute_terms
from greg_cert.verify.radius.branch import Domains, halves, note, of_unknown, relaxed, split_nodes
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius, proven_gap
from greg_cert.verify.radius.coupled.row_search import (
    WEIGHTS,
    Boxes,
    Search,
    reach_of,
    weights_of,
    with_prices,
)
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.problem import Batch

_GROWTH = 1.27  # of the radius known, the ball that is tried
_RATE = 0.7  # of the full step, in parts
_SETTLING = 6  # steps of power iteration before a proof
_CUTS = 3  # of the whole ball, before it is split
_VALUES = 2**23  # of all nodes in all parts, at a time


@dataclass(frozen=True)
class PartsEffort:
    """How hard to try.

    Attributes:
        balls: tried one after another, while all of a ball is proven.
        steps: gradient steps on each.
        splits: how often what is left of it is split.
        part_steps: gradient steps on each part.
        domains: parts of a ball that may be open; with more it is given up.
    """

    balls: int = 1
    steps: int = 60
    splits: int = 7
    part_steps: int = 24
    domains: int = 64


@dataclass(frozen=True)
class _Parts:
    """Parts of balls, of several samples.

    Attributes:
        domains: what is known of each without coupled bounds, and what these prove.
        ascent: variables of each.
        prices: where the search for them stands.
    """

    domains: Domains
    ascent: Ascent
    prices: Prices

    def of(self, members: Tensor) -> _Parts:
        """Some of them, by index."""
        return _Parts(self.domains.of(members), self.ascent.of(members), self.prices.of(members))

    @property
    def is_open(self) -> Tensor:
        """Those (I,), by index, that a violation inside the ball may still lie in."""
        return (self.domains.distance < self.domains.region.radii).nonzero().squeeze(1)


class CoupledParts:
    """Proven ℓ2 radii of one graph by coupled bounds of the parts of a ball.

    Args:
        one: proves whole balls, by the same boxes and searches; its graph has to suit.
        effort: how hard to try.
    """

    def __init__(self, one: CoupledRadius, effort: PartsEffort) -> None:
        self._one, self._graph, self._effort = one, one.graph, effort
        self._engine = NativeEngine(self._graph)
        nodes = self._graph.nodes
        values = sum(torch.Size(node.shape).numel() for node in nodes)
        self._samples = max(1, _VALUES // (values * effort.domains))
        # Of a node that a max pool reads the box says which of its values may matter at all.
        pooled = {j for node in nodes if isinstance(node.op, MaxPool) for j in node.inputs}
        sources = {i: nodes[i].inputs[0] for i in self._graph.activations}
        self._narrowed = {i: source for i, source in sources.items() if source not in pooled}

    @staticmethod
    def suits(graph: Graph) -> bool:
        """Whether there are signs to split by, and CROWN's boxes cost little."""
        return bool(split_nodes(graph)) and Boxes.cheap(graph)

    def __call__(self, batch: Batch, goal: Goal) -> Tensor:
        """Radii (B,) for goals that one row decides, at least those known.

        Balls begin at what is known, and nothing is tried where nothing is.
        """
        known = batch.known
        radii = torch.zeros_like(batch.first_order) if known is None else known.clone()
        most = self._one.max_radius
        going = (radii > 0) & (radii < most)
        for _ in range(self._effort.balls):
            if not going.any():
                break
            for members in going.nonzero().squeeze(1).split(self._samples):
                ball = (_GROWTH * radii[members]).clamp(max=most)
                found = self._ball(batch.of(members), goal.of(members), ball)
                going[members] = (found >= ball) & (ball < most)
                radii[members] = torch.maximum(radii[members], torch.minimum(found, ball))
        return radii

    def _ball(self, batch: Batch, goal: Goal, ball: Tensor) -> Tensor:
        """How far (B,) the goal is proven, up to `ball` (B,)."""
        x, effort = batch.x, self._effort
        search = self._one.search(batch, goal)
        search.ascent = Ascent(search.begin(ball))
        everyone = torch.arange(len(x), device=x.device)
        search.climb(everyone, ball, falling(1.0, effort.steps))
        moved, drafts = self._one.boxes(x, ball), self._one.scouts(x.float(), ball)
        terms = absolute_terms(self._graph, preactivations(self._graph, moved), x, ball)
        whole = _Whole(search, moved, drafts, terms)
        nearest = torch.full_like(ball, torch.inf)
        nothing, weights = torch.zeros_like(ball), search.ascent.variables[WEIGHTS]
        domains = Domains(everyone, Region(x, ball, 2.0), goal, weights, None, None, nothing)
        parts = _Parts(domains, search.ascent, search.prices)
        for depth in range(effort.splits + 1):
            for _ in range(1 if depth else _CUTS):
                parts = self._relaxed(parts)
                parts = parts.of(parts.is_open)
                if len(parts.domains.owner) == 0:
                    return nearest
            # Where it was split last the variables have most to follow.
            parts, costs = self._climbed(parts, whole)
            left = parts.is_open
            parts, costs = parts.of(left), costs[left]
            if depth == effort.splits or len(left) == 0:
                break
            owner = parts.domains.owner
            crowd = owner.bincount(minlength=len(x)) > effort.domains // 2
            able = (costs.amax(1) > 0) & ~crowd[owner]
            note(nearest, parts.domains.of((~able).nonzero().squeeze(1)))
            able = able.nonzero().squeeze(1)
            if len(able) == 0:
                return nearest
            parts = _split(parts.of(able), costs[able].argmax(1))
        note(nearest, parts.domains)
        return nearest

    def _relaxed(self, parts: _Parts) -> _Parts:
        """Tighter boxes, and the parts cut down by what linear bounds prove."""
        domains = parts.domains
        weights = weights_of(parts.ascent.variables[WEIGHTS].double(), domains.goal)
        domains = replace(domains, weights=weights)
        return replace(parts, domains=relaxed(domains, self._engine, "crown", None))

    def _climbed(self, parts: _Parts, whole: _Whole) -> tuple[_Parts, Tensor]:
        """The parts with better variables, cut down by what these prove; and what neurons cost."""
        domains, ascent, prices = parts.domains, parts.ascent, parts.prices
        relaxation, region, owner = domains.relaxation, domains.region, domains.owner
        assert relaxation is not None
        moved = self._within(whole.drafts, owner, relaxation)
        rates = falling(_RATE, self._effort.part_steps)
        whole.search.ascend(owner, moved, region.radii, ascent, prices, rates)
        prices.steps = _SETTLING
        costs: dict[int, Tensor] = {}
        with torch.no_grad():
            whole.search.gap(owner, moved, ascent.variables, prices, costs)
        prices.steps = 1
        moved = self._within(whole.moved, owner, relaxation)
        terms = {i: t[owner] for i, t in whole.terms.items()}
        variables = with_prices(ascent.variables, prices)
        gap, length, bound = proven_gap(
            self._graph, region.inputs, moved, domains.goal, variables, terms
        )
        reach = reach_of(gap, length, bound.curvature).squeeze(1)
        # Violations lie beyond a half-space too, with the curvature taken for its most.
        radii = region.radii.unsqueeze(1)
        distance = ((gap - bound.curvature * radii**2 / 2) / length).squeeze(1)
        normal = bound.slope.flatten(1) / length.clamp_min(torch.finfo(length.dtype).tiny)
        domains = domains.beyond(Cut(normal, torch.where(gap.squeeze(1) > 0, distance, torch.nan)))
        domains = replace(domains, distance=torch.maximum(domains.distance, reach))
        own = {i: cost.squeeze(1).clamp_min(0.0) for i, cost in costs.items()}
        return replace(parts, domains=domains), of_unknown(relaxation, own)

    def _within(
        self, moved: Sequence[Moved], owner: Tensor, relaxation: NativeRelaxation
    ) -> list[Moved]:
        """Moved of the whole balls of `owner` (P,), with the boxes of their parts."""
        found = [m.of(owner) for m in moved]
        for i, source in self._narrowed.items():
            low, high = relaxation.preactivations[i]
            own = found[source]
            box = met(own.box, (low.to(own.centre), high.to(own.centre)))
            found[source] = replace(own, box=box)
        return found


@dataclass(frozen=True)
class _Whole:
    """What holds of whole balls.

    Attributes:
        search: of them.
        moved: of every node, in float64.
        drafts: the same in float32.
        terms: of affine nodes, as of `bound_rows`.
    """

    search: Search
    moved: Sequence[Moved]
    drafts: Sequence[Moved]
    terms: Mapping[int, Tensor]


def _split(parts: _Parts, neuron: Tensor) -> _Parts:
    """Two for each: its neuron (P,) at or above zero, and at or below."""
    twice = torch.arange(len(neuron), device=neuron.device).repeat(2)
    return _Parts(halves(parts.domains, neuron), parts.ascent.of(twice), parts.prices.of(twice))
