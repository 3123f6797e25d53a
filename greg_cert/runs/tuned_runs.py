"""What is known of the runs of one setting's values, and means over their seeds; without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NUMBERS = (
    "accuracy",
    "auroc",
    "fpr",
    "calibration_error",
    "threshold",
    "samples",
    "accepted",
    "undecided",
    "capped",
    "violations",
    "radius_certified",
    "radius_attack",
    "share",
    "radius_lipschitz",
    "train_cpu_seconds",
    "certify_cpu_seconds",
)
"""What is measured of a run, on calibration data alone. Shares are of 1, radii medians over the
accepted samples, `radius_lipschitz` that of `global_lipschitz_radius`; the seconds of certifying
are those of a sample. A number that is not available is None, a median of attacks that were not
found infinite."""


@dataclass(frozen=True)
class TunedRun:
    """One run."""

    value: str  # of the setting, as it was typed
    seed: int
    numbers: Mapping[str, float | None]  # of `NUMBERS`
    error: str | None = None  # why it, or its certificates, failed


@dataclass(frozen=True)
class TunedValue:
    """One value over its seeds."""

    value: str  # as it was typed
    runs: int  # how many were measured
    errors: tuple[str, ...]  # of those that failed, each once
    mean: Mapping[str, float | None]  # of each number over the runs that have it
    std: Mapping[str, float | None]  # sample deviation (divisor n − 1), of two runs or more


def over_seeds(runs: Sequence[TunedRun]) -> list[TunedValue]:
    """Means and deviations of each value, in the order of the values."""
    found = []
    for value in dict.fromkeys(run.value for run in runs):
        members = [run for run in runs if run.value == value]
        mean: dict[str, float | None] = {}
        std: dict[str, float | None] = {}
        for name in NUMBERS:
            numbers = [x for r in members if (x := r.numbers.get(name)) is not None]
            mean[name] = float(np.mean(numbers)) if numbers else None
            several = len(numbers) > 1 and all(map(math.isfinite, numbers))
            std[name] = float(np.std(numbers, ddof=1)) if several else None
        errors = dict.fromkeys(run.error for run in members if run.error is not None)
        measured = sum(run.numbers.get("accuracy") is not None for run in members)
        found.append(TunedValue(value, measured, tuple(errors), mean, std))
    return found
