"""The method `best`: a ladder of proofs, the cheapest first, each for the samples that still go on.

A sample stops where its radius is as large as was asked for, where the next proof would cost more
than is left of its budget, or where nothing is left to try. The first one is always made. Prices
come from the sizes of the network (`prices`), and each proof begins at the radius known so far; so
what a sample gets depends neither on the clock nor on the samples beside it, and a larger budget
never proves less.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.certificates.methods import NO_METHOD, STOPS
from greg_cert.errors import UsageError
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.prices import Price
from greg_cert.verify.radius.problem import Batch, Prove

BUDGET = 8000
"""Passes of a sample by default: up to `sdp-crown` on 8 by 8 digits and on images."""

UNTIL_SHARE = 0.95
"""Of the attack's radius, by default: no proof can add more than what is missing from there."""

ENOUGH, MAX_RADIUS, SPENT, CLOCK, EXHAUSTED, REJECTED = STOPS

_NEAR = 0.8  # of the radius known, below which a proof is left to samples that it suits better


@dataclass(frozen=True)
class Stage:
    """One rung.

    Attributes:
        method: the name that its radii are reported under.
        price: of a sample.
        prove: at least the radii known, or 0.
        takes: which goals it is for.
        after: the stage that it builds on; where that came not near the radius known, this one is
            not tried.
    """

    method: str
    price: Price
    prove: Prove
    takes: Callable[[Goal], bool] = lambda goal: True
    after: Stage | None = None


@dataclass(frozen=True)
class Climb:
    """Where samples came.

    Attributes:
        radii: (B,) proven.
        method: (B,) text, which method proved each.
        stopped: (B,) text, what stopped the sample.
    """

    radii: Tensor
    method: NDArray[np.str_]
    stopped: NDArray[np.str_]

    @classmethod
    def not_begun(cls, radii: Tensor) -> Climb:
        """Of samples on the wrong side."""
        return cls(radii, np.full(len(radii), NO_METHOD), np.full(len(radii), REJECTED))

    def of(self, members: Tensor) -> Climb:
        """The same for some samples, by index."""
        at = members.cpu().numpy()
        return Climb(self.radii[members], self.method[at], self.stopped[at])

    def put(self, members: Tensor, other: Climb) -> Climb:
        """These with another climb of some samples, by index."""
        radii, at = self.radii.clone(), members.cpu().numpy()
        method, stopped = self.method.astype(object), self.stopped.astype(object)
        radii[members], method[at], stopped[at] = other.radii, other.method, other.stopped
        return Climb(radii, method.astype(str), stopped.astype(str))

    def within(self, other: Climb) -> Climb:
        """The shorter of two radii of each sample: within it both goals hold."""
        ends = (other.radii <= self.radii).cpu().numpy()
        return Climb(
            torch.minimum(self.radii, other.radii),
            np.where(ends, other.method, self.method),
            np.where(ends, other.stopped, self.stopped),
        )


@dataclass(frozen=True)
class BestEffort:
    """When to stop.

    Attributes:
        until_share: a sample stops where its radius is this share of the attack's, where attacks
            are made; in (0, 1].
        budget: passes of a sample, forward and back, as `radius/prices` counts them; None for no
            end.
        seconds_per_sample: in place of the budget: on the clock, so that no two calls need prove
            the same.
    """

    until_share: float = UNTIL_SHARE
    budget: int | None = BUDGET
    seconds_per_sample: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.until_share <= 1:
            raise UsageError(f"expected until_share in (0, 1], but got {self.until_share}")
        if self.budget is not None and not self.budget >= 1:
            raise UsageError(f"expected budget >= 1 passes or none, but got {self.budget}")
        seconds = self.seconds_per_sample
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise UsageError(f"expected seconds_per_sample > 0 and finite, but got {seconds}")


class BestRadius:
    """Proven radii by the stages of a ladder, in the order of their prices.

    Args:
        stages: each behind the one that it builds on.
        effort: when a sample stops.
        max_radius: radii are capped here.
    """

    def __init__(self, stages: Sequence[Stage], effort: BestEffort, max_radius: float) -> None:
        self.stages, self._effort, self._max_radius = tuple(stages), effort, max_radius

    def order(self, rows: int) -> list[Stage]:
        """The stages for goals of so many rows, the cheapest first, each behind what it needs."""

        def rank(stage: Stage) -> float:
            before = 0.0 if stage.after is None else rank(stage.after)
            return max(before, stage.price.of(rows))

        return sorted(self.stages, key=rank)  # which leaves equals as they are

    def enough(self, attacked: Tensor) -> Tensor:
        """Radii (B,) that are enough beside attacks at these (B,); NaN where none was made."""
        share = self._effort.until_share * attacked
        return share.nan_to_num(nan=math.inf, posinf=math.inf)

    def __call__(self, batch: Batch, goal: Goal) -> Tensor:
        """Radii (B,), at least those known."""
        return self.climb(batch, goal).radii

    def climb(
        self,
        batch: Batch,
        goal: Goal,
        by: NDArray[np.str_] | None = None,
        enough: Tensor | None = None,
    ) -> Climb:
        """Radii of a batch, with how they came about.

        Args:
            batch: the centres; radii known that no stage exceeds stay.
            goal: what to prove.
            by: (B,) text, the methods that proved what is known.
            enough: (B,) radii at which a sample stops.
        """
        known = batch.known
        radii = torch.zeros_like(batch.first_order) if known is None else known.clone()
        method = np.full(len(radii), NO_METHOD, dtype=object)
        if by is not None:
            method = np.where(radii.cpu().numpy() > 0, by, method)
        stopped = np.full(len(radii), EXHAUSTED, dtype=object)
        going = torch.ones_like(radii, dtype=torch.bool)
        spent = torch.zeros_like(radii)
        near: dict[int, Tensor] = {}  # by stage, the samples on which it came near what was known
        rows = goal.shift.shape[1] if goal.above else goal.shift.shape[2]
        rate = math.inf  # seconds of a pass, once they are known

        def stop(members: Tensor, why: str) -> None:
            stopped[(members & going).cpu().numpy()] = why
            going[members] = False

        def stop_at_the_top() -> None:
            stop(radii >= self._max_radius, MAX_RADIUS)
            if enough is not None:
                stop(radii >= enough, ENOUGH)

        stop_at_the_top()
        for stage in self.order(rows):
            if not stage.takes(goal):
                continue
            price = stage.price.of(rows)
            came = near[id(stage)] = torch.zeros_like(going)
            willing = going.clone()
            if stage.after is not None:
                willing &= near[id(stage.after)]
            if self._effort.seconds_per_sample is None:
                limit = math.inf if self._effort.budget is None else self._effort.budget
                stop(willing & (spent > 0) & (spent + price > limit), SPENT)
            else:
                expected = price * rate if rate < math.inf else 0.0
                stop(willing & (spent + expected > self._effort.seconds_per_sample), CLOCK)
            members = (willing & going).nonzero().squeeze(1)
            if len(members) == 0:
                continue
            begun = time.perf_counter()
            start = radii[members]
            # A first stage has to show how near it comes; one that builds on it goes further.
            floor = _NEAR * start if stage.after is None else start
            some = batch.of(members).knowing(floor)
            found = stage.prove(some, goal.of(members)).clamp(max=self._max_radius)
            if self._effort.seconds_per_sample is None:
                spent[members] += price
            else:
                each = (time.perf_counter() - begun) / len(members)
                spent[members] += each
                rate = each / price
            came[members] = found > floor
            better = members[found > start]
            radii[better] = found[found > start]
            method[better.cpu().numpy()] = stage.method
            stop_at_the_top()
        return Climb(radii, method.astype(str), stopped.astype(str))
