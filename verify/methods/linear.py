"""The methods `crown`, `crown-ibp`, `alpha-crown` and `branch`: linear bounds of a ball."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from greg_cert.verify.methods.method import Proof, at_least
from greg_cert.verify.radius.linear import Ladder, LinearRadius
from greg_cert.verify.radius.problem import Problem, Prove


@dataclass(frozen=True)
class Crown(Proof):
    """Linear bounds, with CROWN bounds of the layers between.

    Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
    Functions", NeurIPS 2018.

    Attributes:
        rounds: rungs of the ladder of balls tried for each sample: growing while all of a ball is
            proven, then closing in on the radius that serves it best.
        tolerance: a sample is done when its radius cannot grow by more than this share.
        mirror_steps: mirror-ascent steps on the row p at each rung but the first.
        cuts: how often a ball is cut down to where violations may still lie, native engine only.
        cut_rounds: rungs tried with cuts, after the others.
    """

    relaxation: ClassVar[str] = "crown"
    begins_at: ClassVar[str | None] = None

    rounds: int = at_least(1, 12)
    tolerance: float = at_least(0, 0.01)
    mirror_steps: int = at_least(0, 5)
    cuts: int = at_least(0, 3)
    cut_rounds: int = at_least(1, 5)

    @property
    def ladder(self) -> Ladder:
        """How the search goes."""
        return Ladder(self.rounds, self.tolerance, self.mirror_steps, self.cuts, self.cut_rounds)

    def prepare(self, problem: Problem) -> Prove:
        """See `Proof.prepare`."""
        return LinearRadius(
            problem.linear, self.relaxation, problem.norm, problem.max_radius, self.ladder
        )


@dataclass(frozen=True)
class CrownIbp(Crown):
    """As `Crown`, with interval bounds of the layers between: faster and looser.

    Source: Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural
    Networks", ICLR 2020.
    """

    relaxation: ClassVar[str] = "crown-ibp"


@dataclass(frozen=True)
class AlphaCrown(Crown):
    """As `Crown`, with slopes that are optimised.

    Source: Xu et al., "Fast and Complete: Enabling Complete Neural Network Verification with Rapid
    and Massively Parallel Incomplete Verifiers", ICLR 2021.
    """

    relaxation: ClassVar[str] = "alpha-crown"
    begins_at: ClassVar[str | None] = "crown"


@dataclass(frozen=True)
class Branch(Crown):
    """As `Crown`, with balls split by the signs of neurons: slow and tight.

    Source: Bunel et al., "Branch and Bound for Piecewise Linear Neural Network Verification",
    JMLR 2020; Wang et al., "Beta-CROWN", NeurIPS 2021.

    Attributes:
        splits: how often what is left of a ball is split by the sign of a neuron.
        domains: parts of a ball that may be open at a time before it is given up.
        split_rounds: rungs tried with splits, after the others.
    """

    begins_at: ClassVar[str | None] = "crown"

    splits: int = at_least(1, 8)
    domains: int = at_least(2, 64)
    split_rounds: int = at_least(1, 4)

    @property
    def ladder(self) -> Ladder:
        """How the search goes; balls are cut before they are split."""
        return replace(
            super().ladder,
            cuts=max(self.cuts, 1),
            splits=self.splits,
            domains=self.domains,
            split_rounds=self.split_rounds,
        )

    def prepare(self, problem: Problem) -> Prove:
        """See `Proof.prepare`."""
        problem.need_native("branch", "which takes no signs of neurons")
        return super().prepare(problem)
