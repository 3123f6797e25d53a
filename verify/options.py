"""Options of `certify` beyond its contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.scores import SCORES
from greg_cert.verify.radius.best import BUDGET, UNTIL_SHARE, BestEffort
from greg_cert.verify.radius.coupled.one_ball import CoupledEffort
from greg_cert.verify.radius.linear import Ladder
from greg_cert.verify.radius.sampled.clever import CleverOptions
from greg_cert.verify.radius.sampled.smoothing_state import SmoothingOptions

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""

_COARSE = 0.02  # tolerance of a search that only leads to another

_LEAST: Mapping[str, float] = {
    "rounds": 1,
    "mirror_steps": 0,
    "tolerance": 0,
    "cuts": 0,
    "cut_rounds": 1,
    "splits": 1,
    "domains": 2,
    "split_rounds": 1,
    "batch": 1,
    "attack_steps": 1,
    "attack_restarts": 1,
    "attack_polish": 0,
}


@dataclass(frozen=True)
class CertifyOptions:
    """Options of `certify` beyond its contract.

    Attributes:
        score: the OOD score that γ is about: energy, max_logit, max_softmax or absent_class.
        labels: (B,) classes; certificates then say that a sample stays accepted **and** correctly
            classified. Side `id` alone.
        indices: (B,) names of the samples, which their random draws depend on; positions by
            default.
        rounds: rungs of the ladder of balls tried for each sample: growing while all of a ball is
            proven, then closing in on the radius that serves it best.
        mirror_steps: mirror-ascent steps on the row p at each rung but the first.
        tolerance: a sample is done when its radius cannot grow by more than this share.
        cuts: how often a ball is cut down to where violations may still lie, native engine only.
        cut_rounds: rungs tried with cuts, after the others.
        splits: of the method `branch`: how often what is left of a ball is split by the sign of a
            neuron.
        domains: parts of a ball that may be open at a time before it is given up.
        split_rounds: rungs tried with splits, after the others.
        lipschitz: compute the Lipschitz columns.
        lipschitz_form: `hybrid`, `interval` or `spectral`, as in `lipschitz_bound`.
        lipschitz_integrated: let the margin be used up by ∫ L(t) dt where that is further.
        attack: compute the attack column.
        attack_steps: gradient steps of one PGD run.
        attack_restarts: random restarts of the attack.
        attack_polish: steps along the boundary at its end.
        coupled: how long the method `sdp-crown` searches.
        until_share: of the method `best`: a sample stops where its radius is this share of the
            attack's, where attacks are made.
        budget: of the method `best`: passes of a sample, forward and back, as
            `radius/prices` counts them; None for no end.
        seconds_per_sample: of the method `best`, in place of the budget: on the clock, so that no
            two calls need prove the same.
        clever: of the method `clever`.
        smoothing: of the method `smoothing`.
        batch: samples bounded at once.
        memory: budget in GiB of what a batch takes; chunks are made to fit. About 1 GiB where it
            is not given.
        seed: of the attack; CLEVER and smoothing have their own, in their options.
        progress: called after every batch.
    """

    score: str = "energy"
    labels: Tensor | None = None
    indices: Tensor | None = None
    rounds: int = 12
    mirror_steps: int = 5
    tolerance: float = 0.01
    cuts: int = 3
    cut_rounds: int = 5
    splits: int = 8
    domains: int = 64
    split_rounds: int = 4
    lipschitz: bool = True
    lipschitz_form: str = "hybrid"
    lipschitz_integrated: bool = True
    attack: bool = True
    attack_steps: int = 30
    attack_restarts: int = 2
    attack_polish: int = 20
    coupled: CoupledEffort = field(default_factory=CoupledEffort)
    until_share: float = UNTIL_SHARE
    budget: int | None = BUDGET
    seconds_per_sample: float | None = None
    clever: CleverOptions = field(default_factory=CleverOptions)
    smoothing: SmoothingOptions = field(default_factory=SmoothingOptions)
    batch: int = 128
    memory: float | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:  # NaN too
                raise UsageError(f"expected {name} >= {least}, but got {getattr(self, name)}")
        if self.score not in SCORES:
            raise UsageError(f"expected score in {', '.join(SCORES)}, but got {self.score!r}")
        if self.memory is not None and not (self.memory > 0 and math.isfinite(self.memory)):
            raise UsageError(f"expected memory > 0 GiB and finite, but got {self.memory}")
        _ = self.best  # which looks at its own

    @property
    def best(self) -> BestEffort:
        """When the method `best` stops."""
        return BestEffort(self.until_share, self.budget, self.seconds_per_sample)

    def ladder(self, method: str) -> Ladder:
        """How linear bounds are searched by a method."""
        if method == "sdp-crown":  # where its own search begins, or goals whose rows are fixed
            return Ladder(self.rounds, max(self.tolerance, _COARSE), 0, 0, 0)
        branches = method == "branch"
        return Ladder(
            self.rounds,
            self.tolerance,
            self.mirror_steps,
            max(self.cuts, 1) if branches else self.cuts,
            self.cut_rounds,
            self.splits if branches else 0,
            self.domains,
            self.split_rounds,
        )

    @property
    def memory_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.memory is None else max(1, int(self.memory * 2**30))


def read_options(given: Mapping[str, object]) -> CertifyOptions:
    """Options by name.

    Raises:
        UsageError: for an unknown name, or a value out of range.
    """
    known = set(CertifyOptions.__dataclass_fields__)
    for name in given:
        if name not in known:
            raise UsageError(f"expected options in {', '.join(sorted(known))}, but got {name!r}")
    return CertifyOptions(**given)  # type: ignore[arg-type]
