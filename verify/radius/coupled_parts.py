"""Radii of balls that are split by the signs of neurons, each part with coupled neurons.

The parts are those of `branch`: a ball beyond a half-space where violations may lie, with the signs
of some neurons given. In each part the search goes on from where it ended in the part that was
split. The centre lies outside of most parts: how far a layer moves from it, and what may move at
all, is taken from the whole ball, and only the boxes of neurons are the part's. Each part is proven
in float64 before it is split, and what was proven cuts it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.verify.ball import best_row
from greg_cert.verify.bounds.ascent import Ascent
from greg_cert.verify.bounds.ball_boxes import Moved, met
from greg_cert.verify.bounds.charges import Prices
from greg_cert.verify.bounds.coupled import Variables
from greg_cert.verify.branch import split_nodes, void, with_signs
from greg_cert.verify.goals import Goal
from greg_cert.verify.graph import Activation, Graph
from greg_cert.verify.max_pool import MaxPool
from greg_cert.verify.native_engine import NativeEngine, OutputConstraint, sign_unknown
from greg_cert.verify.native_relaxation import NativeRelaxation
from greg_cert.verify.radius.coupled import (
    WEIGHTS,
    Boxes,
    Search,
    charged_activations,
    proven_gap,
    reach_of,
    weights_of,
)
from greg_cert.verify.region import Cut, Region, tighter_cut
from greg_cert.verify.rounding import absolute_terms

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
        owner: (P,) the sample that each is a part of.
        region: the balls beyond their cuts.
        goal: of each.
        relaxation: over sets that hold the parts; None before the first.
        constraint: of each; None before the first.
        distance: (P,) that no violation in the part is nearer than.
        ascent: its variables.
        prices: where the search for them stands.
    """

    owner: Tensor
    region: Region
    goal: Goal
    relaxation: NativeRelaxation | None
    constraint: OutputConstraint | None
    distance: Tensor
    ascent: Ascent
    prices: Prices

    def of(self, keep: Tensor) -> _Parts:
        """Some of them, by index."""
        return _Parts(
            self.owner[keep],
            self.region.of(keep),
            self.goal.of(keep),
            None if self.relaxation is None else self.relaxation.of(keep),
            None if self.constraint is None else self.constraint.of(keep),
            self.distance[keep],
            self.ascent.of(keep),
            self.prices.of(keep),
        )

    def open(self) -> _Parts:
        """Those that a violation inside the ball may still lie in."""
        return self.of((self.distance < self.region.radii).nonzero().squeeze(1))

    def cut_down(self, cut: Cut) -> _Parts:
        """With a half-space that holds all violations of each."""
        cut = tighter_cut(self.region.cut, cut, self.region.norm)
        region = replace(self.region, cut=cut)
        return replace(self, region=region, distance=torch.maximum(self.distance, cut.distance))


class CoupledParts:
    """Proven ℓ2 radii of one graph by coupled bounds of the parts of a ball.

    Args:
        graph: the network, in float64.
        draft: the same in float32, which searches.
        max_radius: radii are capped here.
        effort: how hard to try.
    """

    def __init__(
        self, graph: Graph, draft: Graph, max_radius: float, effort: PartsEffort | None = None
    ) -> None:
        self._graph, self._draft, self._max_radius = graph, draft, max_radius
        self._effort = PartsEffort() if effort is None else effort
        self._boxes = Boxes(graph)
        self._scouts = Boxes(draft, self._boxes.norms)
        self._charged = charged_activations(graph)
        self._engine = NativeEngine(graph)
        values = sum(torch.Size(node.shape).numel() for node in graph.nodes)
        self._samples = max(1, _VALUES // (values * self._effort.domains))
        # Of a node that a max pool reads the box says which of its values may matter at all.
        pooled = {j for node in graph.nodes if isinstance(node.op, MaxPool) for j in node.inputs}
        self._narrowed = {
            i: graph.nodes[i].inputs[0]
            for i in graph.activations
            if graph.nodes[i].inputs[0] not in pooled
        }

    def __call__(
        self,
        x: Tensor,
        logits: Tensor,
        goal: Goal,
        first_order: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Radii (B,) within which `goal`, one that a row decides, is proven to hold.

        Args:
            x: (B, ...) centres, float64.
            logits: (B, K) there.
            goal: what to prove; it has to stay above its level.
            first_order: unused: balls begin at what is known.
            known: (B,) radii proven before; nothing is tried where there is none.
        """
        radii = torch.zeros_like(first_order) if known is None else known.clone()
        if not split_nodes(self._graph):
            return radii
        going = (radii > 0) & (radii < self._max_radius)
        for _ in range(self._effort.balls):
            if not going.any():
                break
            for members in going.nonzero().squeeze(1).split(self._samples):
                ball = (_GROWTH * radii[members]).clamp(max=self._max_radius)
                found = self._ball(x[members], logits[members], goal.of(members), ball)
                going[members] = (found >= ball) & (ball < self._max_radius)
                radii[members] = torch.maximum(radii[members], torch.minimum(found, ball))
        return radii

    def _ball(self, x: Tensor, logits: Tensor, goal: Goal, ball: Tensor) -> Tensor:
        """How far (B,) the goal is proven, up to `ball` (B,)."""
        effort = self._effort
        search = Search(self._draft, self._scouts, self._charged, x, logits, goal)
        search.ascent = Ascent(search.begin(ball))
        everyone = torch.arange(len(x), device=x.device)
        search.climb(everyone, ball, _falling(1.0, effort.steps))
        whole = _Whole(search, self._boxes(x, ball), self._scouts(x.to(self._draft.dtype), ball))
        nearest = torch.full_like(ball, torch.inf)
        nothing = torch.zeros_like(ball)
        parts = _Parts(
            everyone, Region(x, ball, 2.0), goal, None, None, nothing, search.ascent, search.prices
        )
        boxes = {
            i: whole.moved[self._graph.nodes[i].inputs[0]].box for i in self._graph.activations
        }
        terms = absolute_terms(self._graph, boxes, x, ball)
        for depth in range(effort.splits + 1):
            for _ in range(1 if depth else _CUTS):
                parts = self._relax(parts).open()
                if len(parts.owner) == 0:
                    return nearest
            # Where it was split last the variables have most to follow.
            parts, costs = self._climb(parts, whole, terms)
            left = (parts.distance < parts.region.radii).nonzero().squeeze(1)
            parts, costs = parts.of(left), costs[left]
            if depth == effort.splits or len(left) == 0:
                break
            crowd = parts.owner.bincount(minlength=len(x)) > effort.domains // 2
            able = (costs.amax(1) > 0) & ~crowd[parts.owner]
            _note(nearest, parts.of((~able).nonzero().squeeze(1)))
            able = able.nonzero().squeeze(1)
            if len(able) == 0:
                return nearest
            parts = _split(parts.of(able), costs[able].argmax(1))
        _note(nearest, parts)
        return nearest

    def _relax(self, parts: _Parts) -> _Parts:
        """Tighter boxes, and the parts cut down by what linear bounds prove."""
        relaxation = self._engine.relax_region(
            parts.region, outer=parts.relaxation, constraint=parts.constraint
        )
        weights = parts.ascent.variables[WEIGHTS].double()
        row, constant = best_row(relaxation, parts.goal, weights_of(weights, parts.goal))
        half, steepness = relaxation.half_space(row, constant)
        parts = replace(
            parts,
            relaxation=relaxation,
            constraint=OutputConstraint(row, constant, steepness),
        ).cut_down(half)
        return replace(parts, distance=void(parts.distance, relaxation))

    def _climb(
        self, parts: _Parts, whole: _Whole, terms: dict[int, Tensor]
    ) -> tuple[_Parts, Tensor]:
        """The parts with better variables, cut down by what these prove; and what neurons cost."""
        relaxation, region, owner = parts.relaxation, parts.region, parts.owner
        assert relaxation is not None
        ascent, prices = parts.ascent, parts.prices
        moved = self._within(whole.drafts, owner, relaxation)
        rates = _falling(_RATE, self._effort.part_steps)
        whole.search.ascend(owner, moved, region.radii, ascent, prices, rates)
        prices.steps = _SETTLING
        costs: dict[int, Tensor] = {}
        with torch.no_grad():
            whole.search.gap(owner, moved, ascent.variables, prices, costs)
        prices.steps = 1
        taken: Variables = {("price", i): tau for i, tau in prices.last.items()}
        moved = self._within(whole.moved, owner, relaxation)
        own = {i: t[owner] for i, t in terms.items()}
        gap, length, bound = proven_gap(
            self._graph, region.inputs, moved, parts.goal, {**ascent.variables, **taken}, own
        )
        reach = reach_of(gap, length, bound.curvature).squeeze(1)
        # Violations lie beyond a half-space too, with the curvature taken for its most.
        radii = region.radii.unsqueeze(1)
        distance = ((gap - bound.curvature * radii**2 / 2) / length).squeeze(1)
        normal = bound.slope.flatten(1) / length.clamp_min(torch.finfo(length.dtype).tiny)
        parts = parts.cut_down(Cut(normal, torch.where(gap.squeeze(1) > 0, distance, torch.nan)))
        parts = replace(parts, distance=torch.maximum(parts.distance, reach))
        return parts, self._unknown(costs, relaxation)

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

    def _unknown(self, costs: dict[int, Tensor], relaxation: NativeRelaxation) -> Tensor:
        """Costs (P, N) of the neurons that may be split, 0 where the sign is known."""
        found = []
        for i in split_nodes(self._graph):
            op, (low, high) = self._graph.nodes[i].op, relaxation.preactivations[i]
            assert isinstance(op, Activation)
            cost = costs[i].squeeze(1).clamp_min(0.0) + 1e-6 * torch.minimum(-low, high)
            found.append(torch.where(sign_unknown(op, low, high), cost, 0.0).flatten(1))
        return torch.cat(found, 1).nan_to_num(nan=0.0, posinf=0.0)


@dataclass(frozen=True)
class _Whole:
    """What holds of whole balls.

    Attributes:
        search: of them.
        moved: of every node, in float64.
        drafts: the same in float32.
    """

    search: Search
    moved: Sequence[Moved]
    drafts: Sequence[Moved]


def _falling(first: float, steps: int) -> list[float]:
    return [first * (1 - 0.9 * k / steps) for k in range(steps)]


def _note(nearest: Tensor, parts: _Parts) -> None:
    """Take in, in place, that violations may lie in these parts."""
    nearest.scatter_reduce_(0, parts.owner, parts.distance, "amin")


def _split(parts: _Parts, neuron: Tensor) -> _Parts:
    """Two for each: its neuron (P,) at or above zero, and at or below."""
    count = len(neuron)
    both = parts.of(torch.arange(count, device=neuron.device).repeat(2))
    assert both.relaxation is not None
    positive = torch.arange(2 * count, device=neuron.device) < count
    return replace(both, relaxation=with_signs(both.relaxation, neuron.repeat(2), positive))
