"""Radii from linear bounds: a search in float32 proposes balls, the proving type proves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.engine import RegionEngine
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.radius.ball import BallBounds
from greg_cert.verify.radius.branch import Effort
from greg_cert.verify.radius.duality import first_weights
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.problem import Batch, Engines
from greg_cert.verify.radius.search import RadiusSearch, Reach

_GUESS = 0.5  # of the first-order radius, where the ladder begins
_NEAR = 0.25  # of that, below which a radius known before is no place to begin
_COARSE = 0.04  # tolerance of the ladder where cuts follow
_CUT_GROWTH = 1.1
_LARGE = 2**22  # neurons of a layer × values of the widest
_ROUGH = 0.3  # tolerance of a first search by interval bounds
_ABOVE = 1.5  # times what they prove, where CROWN begins
_RETREAT = 0.98  # of the ball, where a proof in the other type fell short
_SHORT = 0.97


@dataclass(frozen=True)
class Ladder:
    """How the search goes.

    Attributes:
        rounds: balls tried without cuts.
        tolerance: relative, at which a sample is done.
        mirror_steps: on every ball but the first.
        cuts: cuts of each ball after that; 0 for none.
        cut_rounds: balls tried with cuts.
        splits: of each ball after that, by signs; 0 for none.
        domains: of one sample that may be open at a time.
        split_rounds: balls tried with splits.
        onwards: whether radii known before are not proven again, only larger ones.
    """

    rounds: int
    tolerance: float
    mirror_steps: int
    cuts: int
    cut_rounds: int
    splits: int = 0
    domains: int = 64
    split_rounds: int = 4
    onwards: bool = False


class LinearRadius:
    """Proven radii of one network by linear bounds.

    Args:
        engines: who proves and who searches.
        relaxation: how the engines find bounds of the layers between, as of `Engine.relax`.
        norm: of the balls.
        max_radius: radii are capped here.
        ladder: how the search goes.
    """

    def __init__(
        self, engines: Engines, relaxation: str, norm: float, max_radius: float, ladder: Ladder
    ) -> None:
        self._max_radius, self._ladder = max_radius, ladder
        if not isinstance(engines.prover, RegionEngine):
            self._ladder = replace(ladder, cuts=0, splits=0)
        graph, draft = engines.graph, engines.draft
        self._prover = BallBounds(graph, engines.prover, norm, relaxation)
        self._scout = BallBounds(draft, engines.scout, norm, relaxation)
        self._careful_scout = BallBounds(graph, engines.careful, norm, relaxation)
        self._intervals: BallBounds | None = None
        if relaxation not in ("crown-ibp", "sdp-crown") and _is_large(graph):
            self._intervals = BallBounds(draft, engines.scout, norm, "crown-ibp")

    def __call__(self, batch: Batch, goal: Goal) -> Tensor:
        """Radii (B,) within which `goal` is proven to hold.

        Of a ladder that goes `onwards`, 0 where nothing larger than the radius known was found.
        """
        x, known = batch.x, batch.known
        weights = first_weights(goal, batch.logits)
        ladder = self._ladder

        def reach(bounds: BallBounds, members: Tensor, radii: Tensor, effort: Effort) -> Tensor:
            found, improved = bounds.reach(
                x[members], radii, goal.of(members), weights[members], effort
            )
            weights[members] = improved
            return found

        def scouted(scout: BallBounds, effort: Effort) -> Reach:
            # On the first ball the weights of the centre do: it is far from the radius yet.
            return lambda members, radii, turn: reach(
                scout, members, radii, effort if turn or effort.cuts else Effort()
            )

        guess = batch.first_order * _GUESS
        begun = torch.zeros_like(guess, dtype=torch.bool)  # where the radius known is a beginning
        if known is not None:
            begun = known > (_NEAR * guess if ladder.onwards else 0)
            guess = torch.where(begun, known, guess)
        if self._intervals is not None and (known is None or ladder.onwards):
            # Where most signs are unknown CROWN costs much and proves nothing: start from below.
            first = RadiusSearch(guess, self._max_radius)
            first.climb(scouted(self._intervals, Effort()), ladder.rounds, _ROUGH, ~begun)
            guess = torch.where(first.best > 0, _ABOVE * first.best, guess)
        plain = Effort(ladder.mirror_steps)
        floor = known if ladder.onwards else None
        search = RadiusSearch(guess, self._max_radius, floor)
        tolerance = max(ladder.tolerance, _COARSE) if ladder.cuts else ladder.tolerance
        draft, careful = scouted(self._scout, plain), scouted(self._careful_scout, plain)
        search.climb_by_draft(draft, careful, ladder.rounds, tolerance)
        harder = [(0, ladder.cut_rounds)] if ladder.cuts else []
        harder += [(ladder.splits, ladder.split_rounds)] if ladder.splits else []
        for splits, rounds in harder:
            search.begin_again(_CUT_GROWTH)
            effort = Effort(ladder.mirror_steps, ladder.cuts, splits, ladder.domains)
            search.climb(scouted(self._scout, effort), rounds, ladder.tolerance)
        return self._prove(search, reach)

    def _prove(
        self,
        search: RadiusSearch,
        reach: Callable[[BallBounds, Tensor, Tensor, Effort], Tensor],
    ) -> Tensor:
        """Radii (B,) by the proving engine, at the balls the search liked best."""
        radii = torch.zeros_like(search.best)
        ladder = self._ladder
        effort = Effort(
            ladder.mirror_steps if ladder.cuts else 0, ladder.cuts, ladder.splits, ladder.domains
        )
        members = search.best_at.isfinite().nonzero().squeeze(1)
        ball = search.best_at.clone()
        for _ in range(3):
            if len(members) == 0:
                break
            tried = ball[members]
            proven = torch.minimum(tried, reach(self._prover, members, tried, effort))
            radii[members] = torch.maximum(radii[members], proven)
            # The two types may differ on which side of a steep edge a ball lies.
            members = members[radii[members] < _SHORT * search.best[members]]
            ball[members] = ball[members] * _RETREAT
        return radii


def _is_large(graph: Graph) -> bool:
    """Whether bounds of a layer's neurons take long enough to be spared."""
    neurons = max((math.prod(graph.nodes[i].shape) for i in graph.activations), default=0)
    return neurons * max(math.prod(n.shape) for n in graph.nodes) > _LARGE
