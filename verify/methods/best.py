"""The method `best`: which proofs there are for one network, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter

from greg_cert.verify.methods.linear import Crown
from greg_cert.verify.methods.sdp_crown import SdpCrown, ball_radius
from greg_cert.verify.radius import prices
from greg_cert.verify.radius.ball import can_cut
from greg_cert.verify.radius.best import BestEffort, BestRadius, Stage
from greg_cert.verify.radius.branch import split_nodes
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius
from greg_cert.verify.radius.coupled.parts import CoupledParts, PartsEffort
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.radius.coupled.rows import CoupledRows
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.linear import Ladder, LinearRadius
from greg_cert.verify.radius.problem import Problem

_COARSE = 0.04  # tolerance of a search that cuts follow
_ROUND_STEPS = 8  # gradient steps of one ball with one multiplier a layer
_SPLITS = ((8, 16, 2), (8, 64, 4), (12, 256, 4), (16, 1024, 4))  # splits, open parts, balls


@dataclass(frozen=True)
class Best(BestEffort, Crown):
    """A ladder of the other proofs, the cheapest first, each for the samples that still go on.

    Source: this project; the proofs are those of its rungs.

    Attributes:
        coupled: how long the rungs of `sdp-crown` search.
    """

    coupled: CoupledEffort = field(default_factory=CoupledEffort)

    def __post_init__(self) -> None:
        Crown.__post_init__(self)
        BestEffort.__post_init__(self)

    def prepare(self, problem: Problem) -> BestRadius:
        """The ladder of a network, for any goal.

        Cuts, splits and `sdp-crown` need the native engine, `sdp-crown` the norm 2 too.
        """
        stages = self._linear(problem)
        if problem.is_native and problem.norm == 2.0:
            stages += self._coupled(problem)
        return BestRadius(stages, self, problem.max_radius)

    def _linear(self, problem: Problem) -> list[Stage]:
        """CROWN, then balls cut down to where violations may lie, then split by signs."""
        graph = problem.graph
        usual = replace(self.ladder, onwards=True)
        cutting = problem.is_native and usual.cuts > 0
        plain = replace(usual, cuts=0, tolerance=max(usual.tolerance, _COARSE * cutting))

        def stage(method: str, ladder: Ladder, price: prices.Price, after: Stage | None) -> Stage:
            prove = LinearRadius(problem.linear, "crown", problem.norm, problem.max_radius, ladder)
            if after is None:
                return Stage(method, price, prove)
            return Stage(method, price, prove, can_cut, after)

        first = stage("crown", plain, prices.balls(graph, plain.rounds), None)
        found = [first]
        if cutting:
            price = prices.balls(graph, usual.cut_rounds * (usual.cuts + 1))
            found.append(stage("crown", replace(usual, rounds=0), price, first))
        if problem.is_native and split_nodes(graph):
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
                price = prices.balls(graph, rounds * domains)  # a relaxation of each part
                found.append(last := stage("branch", ladder, price, last))
        return found

    def _coupled(self, problem: Problem) -> list[Stage]:
        """Bounds that know an ℓ2 ball: a multiplier a neuron, after one a layer for several rows.

        Where CROWN's boxes are at hand, balls are split by signs too.
        """
        effort, one_row = self.coupled, attrgetter("one_row")

        def has_rows(goal: Goal) -> bool:
            return not goal.one_row

        one = CoupledRadius(problem, effort)
        neurons = Stage("sdp-crown", prices.steps(effort.rounds * effort.steps), one, one_row)
        ladder = replace(SdpCrown(self.rounds, self.tolerance).ladder, onwards=True)
        price = prices.steps(ladder.rounds * _ROUND_STEPS)
        layers = Stage("sdp-crown", price, ball_radius(problem, ladder), has_rows)
        price = prices.rows(effort.rounds, effort.steps)
        rows = Stage("sdp-crown", price, CoupledRows(one), has_rows, after=layers)
        found = [neurons, layers, rows]
        if CoupledParts.suits(problem.pooled):
            parts = PartsEffort()
            price = prices.coupled_parts(
                problem.pooled, parts.balls, parts.steps, parts.splits, parts.part_steps
            )
            split = CoupledParts(one, parts)
            found.append(Stage("sdp-crown", price, split, one_row, after=neurons))
        return found
