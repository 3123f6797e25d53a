"""The method `sdp-crown`: one multiplier a layer, then one a neuron, then balls that are split."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from greg_cert.certificates.methods import L2_ONLY
from greg_cert.errors import UsageError
from greg_cert.verify.methods.method import Proof, at_least
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius
from greg_cert.verify.radius.coupled.parts import CoupledParts, PartsEffort
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.radius.coupled.rows import CoupledRows
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.linear import Ladder, LinearRadius
from greg_cert.verify.radius.problem import Batch, Problem, Prove

_COARSE = 0.02  # tolerance of a search that only leads to another


@dataclass(frozen=True)
class SdpCrown(Proof):
    """Bounds that know an ℓ2 ball, the tightest at image size.

    Source: Chiu et al., "SDP-CROWN: Efficient Bound Propagation for Neural Network Verification
    with Tightness of Semidefinite Programming", ICML 2025; the chain of quadratic bounds behind it
    is derived in docs/method.md.

    Attributes:
        rounds: rungs of the ladder of balls tried first.
        tolerance: at which that ladder ends, or 0.02, if larger.
        coupled: how long the search goes on afterwards.
    """

    rounds: int = at_least(1, 12)
    tolerance: float = at_least(0, 0.01)
    coupled: CoupledEffort = field(default_factory=CoupledEffort)

    @property
    def ladder(self) -> Ladder:
        """Where the search of one row begins, or of goals whose rows are fixed."""
        return Ladder(self.rounds, max(self.tolerance, _COARSE), 0, 0, 0)

    def prepare(self, problem: Problem) -> Prove:
        """See `Proof.prepare`."""
        problem.need_native("sdp-crown", "whose bounds are other ones")
        if problem.norm != 2.0:
            raise UsageError(L2_ONLY)
        balls = ball_radius(problem, self.ladder)
        one = CoupledRadius(problem, self.coupled)
        rows = CoupledRows(one)
        parts: CoupledParts | None = None
        if self.coupled.splits and CoupledParts.suits(problem.pooled):
            parts = CoupledParts(one, PartsEffort(splits=self.coupled.splits))

        def prove(batch: Batch, goal: Goal) -> Tensor:
            radii = balls(batch, goal)
            known = radii if batch.known is None else radii.maximum(batch.known)
            radii = rows(batch.knowing(known), goal)
            if parts is not None and goal.one_row:
                radii = parts(batch.knowing(radii), goal)
            return radii

        return prove


def ball_radius(problem: Problem, ladder: Ladder) -> LinearRadius:
    """Proven ℓ2 radii by one multiplier a layer, for any goal."""
    return LinearRadius(problem.coupled, "sdp-crown", 2.0, problem.max_radius, ladder)
