"""The stages of `best` for one network: which proofs there are, and what each costs."""

from __future__ import annotations

from dataclasses import replace

import torch

from greg_cert.verify.bounds.engine import Engine
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.options import CertifyOptions
from greg_cert.verify.radius import prices
from greg_cert.verify.radius.ball import can_cut
from greg_cert.verify.radius.best import BestRadius, Stage
from greg_cert.verify.radius.branch import split_nodes
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius
from greg_cert.verify.radius.coupled.parts import CoupledParts, PartsEffort
from greg_cert.verify.radius.coupled.rows import CoupledRows
from greg_cert.verify.radius.coupled.sdp_crown import ball_radius
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.linear import Ladder, LinearRadius

_COARSE = 0.04  # tolerance of a search that cuts follow
_ROUND_STEPS = 8  # gradient steps of one ball with one multiplier a layer
_SPLITS = ((8, 16, 2), (8, 64, 4), (12, 256, 4), (16, 1024, 4))  # splits, open parts, balls


def best_radius(
    graph: Graph,
    draft: Graph,
    pooled: Graph,
    engine: Engine,
    norm: float,
    max_radius: float,
    options: CertifyOptions,
) -> BestRadius:
    """The ladder of a network, for any goal.

    Args:
        graph: the network in float64.
        draft: the same in float32, which searches.
        pooled: the network in float64 with whole max pools, for bounds that know a ball.
        engine: proves linear bounds; cuts, splits and `sdp-crown` need the native one.
        norm: 2 or inf, which has no `sdp-crown`.
        max_radius: radii are capped here.
        options: how long each stage searches, and when a sample stops.
    """
    stages = _linear(graph, draft, engine, norm, max_radius, options)
    if isinstance(engine, NativeEngine) and norm == 2.0:
        pooled_draft = draft if pooled is graph else pooled.to(torch.float32)
        stages += _coupled(pooled, pooled_draft, max_radius, options)
    return BestRadius(stages, options.best, max_radius)


def _linear(
    graph: Graph,
    draft: Graph,
    engine: Engine,
    norm: float,
    max_radius: float,
    options: CertifyOptions,
) -> list[Stage]:
    """CROWN, then balls cut down to where violations may lie, then split by signs."""
    memory = options.memory_bytes
    scouts = {id(g): NativeEngine(g, memory) for g in (graph, draft)}  # once, for all of them
    usual = replace(options.ladder("crown"), onwards=True)
    native = isinstance(engine, NativeEngine)
    cutting = native and usual.cuts > 0
    plain = replace(usual, cuts=0, tolerance=max(usual.tolerance, _COARSE * cutting))

    def stage(method: str, ladder: Ladder, price: prices.Price, after: Stage | None) -> Stage:
        prove = LinearRadius(
            graph,
            draft,
            engine,
            "crown",
            norm,
            max_radius,
            ladder,
            memory,
            scouts=lambda graph, memory: scouts[id(graph)],
        )
        return Stage(method, price, prove, _any if after is None else can_cut, after)

    first = stage("crown", plain, prices.balls(graph, plain.rounds), None)
    found = [first]
    if cutting:
        price = prices.balls(graph, usual.cut_rounds * (usual.cuts + 1))
        found.append(stage("crown", replace(usual, rounds=0), price, first))
    if native and split_nodes(graph):
        # Where the first splits gain nothing, more of them would cost much and gain little.
        last = first
        for splits, domains, rounds in _SPLITS:
            ladder = replace(
                usual,
                rounds=0,
                cuts=max(usual.cuts, 1),
                cut_rounds=0,
                splits=splits,
                domains=domains,
                split_rounds=rounds,
            )
            price = prices.parts(graph, rounds, domains)
            found.append(last := stage("branch", ladder, price, last))
    return found


def _coupled(graph: Graph, draft: Graph, max_radius: float, options: CertifyOptions) -> list[Stage]:
    """Bounds that know an ℓ2 ball: a multiplier a neuron, after one a layer for several rows.

    Where CROWN's boxes are at hand, balls are split by signs too.
    """
    effort = options.coupled
    one = CoupledRadius(graph, draft, max_radius, effort)
    neurons = Stage("sdp-crown", prices.steps(effort.rounds * effort.steps), one, _is_one_row)
    ladder = replace(options.ladder("sdp-crown"), onwards=True)
    balls = ball_radius(graph, draft, max_radius, ladder)
    price = prices.steps(ladder.rounds * _ROUND_STEPS)
    layers = Stage("sdp-crown", price, balls, _has_rows)
    price = prices.rows(effort.rounds, effort.steps)
    found = [neurons, layers, Stage("sdp-crown", price, CoupledRows(one), _has_rows, after=layers)]
    if CoupledParts.suits(graph):
        parts = PartsEffort()
        price = prices.coupled_parts(
            graph, parts.balls, parts.steps, parts.splits, parts.part_steps
        )
        split = CoupledParts(one, parts)
        found.append(Stage("sdp-crown", price, split, _is_one_row, after=neurons))
    return found


def _is_one_row(goal: Goal) -> bool:
    return goal.one_row


def _has_rows(goal: Goal) -> bool:
    return not goal.one_row


def _any(goal: Goal) -> bool:
    return True
