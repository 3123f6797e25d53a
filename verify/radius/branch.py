"""Proof of a whole ball by parts: cut down to where violations may lie, then split by the signs.

Every violation in a ball lies in one of its domains, each a ball beyond a half-space with the signs
of some neurons given. So none is nearer than the nearest of the domains that are left.

Source: splitting by signs with bounds by linear relaxation is that of Bunel et al., "Branch and
Bound for Piecewise Linear Neural Network Verification", JMLR 2020, and of Wang et al.,
"Beta-CROWN", NeurIPS 2021; the choice of a neuron follows what its upper line gives away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.crown import (
    Lines,
    RelaxedNetwork,
    backward_rows,
    relax_activation,
)
from greg_cert.verify.bounds.engine import RegionEngine
from greg_cert.verify.bounds.native_engine import sign_unknown
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import Cut, OutputConstraint, Region, tighter_cut
from greg_cert.verify.graph.ops import Activation, Graph
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.row_bounds import best_row, better_weights, where_finite

_LEAST_GAIN = 0.01  # of the ball's radius: below that, cutting once more is not worth it
_TURNS = 2  # relaxations of a domain after each split


@dataclass(frozen=True)
class Effort:
    """How hard to try on one ball.

    Attributes:
        mirror_steps: steps of mirror ascent on the weights p.
        cuts: how often the ball is cut down to where violations may still lie.
        splits: how often what is left is split by the sign of a neuron; 0 where none has signs.
        domains: of one sample that may be open at a time; with more it is given up.
    """

    mirror_steps: int = 0
    cuts: int = 0
    splits: int = 0
    domains: int = 64


@dataclass(frozen=True)
class Domains:
    """Parts of balls, of several samples.

    Attributes:
        owner: (D,) the sample that each is a part of.
        region: the balls beyond their cuts.
        goal: of each.
        weights: p of each.
        relaxation: over sets that hold the domains; None before the first.
        constraint: of each; None before the first.
        distance: (D,) that no violation in the domain is nearer than.
    """

    owner: Tensor
    region: Region
    goal: Goal
    weights: Tensor
    relaxation: NativeRelaxation | None
    constraint: OutputConstraint | None
    distance: Tensor

    def of(self, members: Tensor) -> Domains:
        """Some of the domains, by index."""
        return Domains(
            self.owner[members],
            self.region.of(members),
            self.goal.of(members),
            self.weights[members],
            None if self.relaxation is None else self.relaxation.of(members),
            None if self.constraint is None else self.constraint.of(members),
            self.distance[members],
        )

    def beyond(self, half: Cut) -> Domains:
        """With a half-space that holds all violations of each, where bounds are finite."""
        assert self.relaxation is not None
        cut = tighter_cut(self.region.cut, half, self.region.norm)
        distance = torch.maximum(self.distance, where_finite(cut.distance, self.relaxation))
        return replace(self, region=replace(self.region, cut=cut), distance=distance)

    def open(self) -> Domains:
        """Those that a violation inside the ball may still lie in."""
        return self.of((self.distance < self.region.radii).nonzero().squeeze(1))


def prove_by_parts(
    engine: RegionEngine,
    method: str,
    region: Region,
    goal: Goal,
    weights: Tensor,
    effort: Effort,
) -> tuple[Tensor, Tensor]:
    """How far (B,) each sample's goal is proven, inf for a whole ball; and the weights p (B, 1, K).

    Of whole balls, for a goal that a single row decides; `weights` are those to begin with.
    """
    radii = region.radii
    everyone = torch.arange(len(radii), device=radii.device)
    nothing = torch.zeros_like(radii)
    domains = Domains(everyone, region, goal, weights, None, None, nothing)
    best_weights, left_behind = weights.clone(), torch.full_like(radii, torch.inf)
    for depth in range(effort.splits + 1):
        turns = _TURNS if depth else effort.cuts + 1
        for turn in range(turns):
            before = domains.distance
            domains = relaxed(domains, engine, method, effort.mirror_steps)
            if depth == 0:
                best_weights[domains.owner] = domains.weights
            gains = domains.distance > before + _LEAST_GAIN * domains.region.radii
            done = domains.distance >= domains.region.radii
            stalled = ~gains & ~done & (turn > 0)
            if depth == 0 and effort.splits == 0:  # nothing comes after: drop what has stalled
                note(left_behind, domains.of(stalled.nonzero().squeeze(1)))
                domains = domains.of((~done & ~stalled).nonzero().squeeze(1))
            else:
                domains = domains.open()
            if len(domains.owner) == 0 or (turn > 0 and not gains.any()):
                break
        if depth == effort.splits or len(domains.owner) == 0:
            break
        crowded = domains.owner.bincount(minlength=len(radii)) > effort.domains // 2
        alone = crowded[domains.owner]
        note(left_behind, domains.of(alone.nonzero().squeeze(1)))
        domains = _split(domains.of((~alone).nonzero().squeeze(1)), left_behind)
        if len(domains.owner) == 0:
            break
    note(left_behind, domains)
    return left_behind, best_weights


def note(nearest: Tensor, domains: Domains) -> None:
    """Take in, in place, that violations may lie in these domains."""
    nearest.scatter_reduce_(0, domains.owner, domains.distance, "amin")


def relaxed(domains: Domains, engine: RegionEngine, method: str, steps: int | None) -> Domains:
    """The domains with tighter bounds, and cut down by what these prove.

    The weights improve by `steps` of mirror ascent; None leaves them as they are.
    """
    region = domains.region
    relaxation = engine.relax_region(
        region, method, outer=domains.relaxation, constraint=domains.constraint
    )
    chosen, weights = better_weights(relaxation, domains.goal, domains.weights, steps)
    row, constant = best_row(chosen, domains.goal, weights)
    half, steepness = chosen.half_space(row, constant)
    found = replace(
        domains,
        weights=weights,
        relaxation=relaxation,
        constraint=OutputConstraint(row, constant, steepness),
    )
    return found.beyond(half)


def _split(domains: Domains, left_behind: Tensor) -> Domains:
    """Two domains for each: a neuron at or above zero, and at or below.

    A domain without a neuron of unknown sign is linear already; it is left behind.
    """
    relaxation, constraint = domains.relaxation, domains.constraint
    assert relaxation is not None
    assert constraint is not None
    if len(domains.owner) == 0:
        return domains
    costs = _given_away(relaxation, constraint.row)  # (D, N)
    most, neuron = costs.max(1)
    note(left_behind, domains.of((~(most > 0)).nonzero().squeeze(1)))
    able = (most > 0).nonzero().squeeze(1)
    domains, neuron = domains.of(able), neuron[able]
    return halves(domains, neuron)


def halves(domains: Domains, neuron: Tensor) -> Domains:
    """Of each domain the part with its neuron (D,) at or above zero; then those at or below."""
    count = len(neuron)
    both = domains.of(torch.arange(count, device=neuron.device).repeat(2))
    assert both.relaxation is not None
    positive = torch.arange(2 * count, device=neuron.device) < count
    return replace(both, relaxation=_with_signs(both.relaxation, neuron.repeat(2), positive))


def _given_away(relaxation: NativeRelaxation, row: Tensor) -> Tensor:
    """What the upper lines of neurons (D, N) may cost the bound of a row (D, K) of the logits.

    Zero for neurons of known sign; a little for those whose lower line alone is used.
    """
    graph = relaxation.graph
    lines: dict[int, Lines] = {}
    leaves = []
    for i in split_nodes(graph):
        op = graph.nodes[i].op
        assert isinstance(op, Activation)
        low, high, intercept = relax_activation(*relaxation.preactivations[i], op.negative_slope)
        leaves.append(intercept.detach().requires_grad_())
        lines[i] = (low, high, leaves[-1])
    with torch.enable_grad():
        last = len(graph.nodes) - 1
        network = RelaxedNetwork(graph, relaxation.preactivations, lines=lines)
        _, offset, _ = backward_rows(network, last, row.unsqueeze(1))
        found = torch.autograd.grad(offset.sum(), leaves, allow_unused=True, materialize_grads=True)
    costs = {
        i: -negative * intercept.detach()
        for i, intercept, negative in zip(split_nodes(graph), leaves, found, strict=True)
    }
    return of_unknown(relaxation, costs)


def of_unknown(relaxation: NativeRelaxation, costs: Mapping[int, Tensor]) -> Tensor:
    """Costs (D, *shape) of the neurons of each activation as one (D, N): 0 where a sign is known.

    A little is added, so that a neuron which costs nothing is split after all others.
    """
    found = []
    for i in split_nodes(relaxation.graph):
        low, high = relaxation.preactivations[i]
        op = relaxation.graph.nodes[i].op
        assert isinstance(op, Activation)
        cost = costs[i] + 1e-6 * torch.minimum(-low, high)
        found.append(torch.where(sign_unknown(op, low, high), cost, 0.0).flatten(1))
    return torch.cat(found, 1).nan_to_num(nan=0.0, posinf=0.0)


def _with_signs(relaxation: NativeRelaxation, neuron: Tensor, positive: Tensor) -> NativeRelaxation:
    """The relaxation with the sign of one neuron (D,) of each domain given."""
    bounds = dict(relaxation.preactivations)
    first = 0
    for i in split_nodes(relaxation.graph):
        low, high = (t.flatten(1).clone() for t in bounds[i])
        here = (neuron >= first) & (neuron < first + low.shape[1])
        for rows, end, clamp in ((here & positive, low, "min"), (here & ~positive, high, "max")):
            at = rows.nonzero().squeeze(1)
            column = neuron[at] - first
            end[at, column] = end[at, column].clamp(**{clamp: 0.0})
        first += low.shape[1]
        shape = bounds[i][0].shape
        bounds[i] = (low.reshape(shape), high.reshape(shape))
    return replace(relaxation, preactivations=bounds, lines={})


def split_nodes(graph: Graph) -> list[int]:
    """Activation nodes that are linear on either side of zero."""
    return [i for i in graph.activations if isinstance(graph.nodes[i].op, Activation)]
