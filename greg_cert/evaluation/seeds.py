"""Runs that differ in their seed alone, and means and deviations over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from greg_cert.data.groups import Group
from greg_cert.evaluation.evaluator import Evaluator
from greg_cert.evaluation.figures import METRICS, Detection, Predictions
from greg_cert.runs.subjects import Subject

_GROUPS: tuple[tuple[str, Group | None], ...] = (("", None), ("near_", "near"), ("far_", "far"))


@dataclass(frozen=True)
class Evaluated:
    """One run by one detector."""

    run: str  # what tables call it
    seed: int | None  # that it was trained with, where that is known
    family: str  # what it shares with the runs of other seeds, and with no other run
    title: str  # what tables call the family
    predictions: Predictions
    detection: Detection

    def numbers(self) -> dict[str, float]:
        """Every figure by name: accuracy, calibration error, metrics by group, and by OOD set.

        Means over all OOD sets go by the metric's name, those over a group by `near_` or `far_`
        before it, and those of one set by `ood/NAME/` before it.
        """
        found: dict[str, float] = {
            "id_accuracy": self.predictions.accuracy,
            "calibration_error": self.predictions.calibration_error,
        }
        for prefix, group in _GROUPS:
            for metric in METRICS:
                if (value := self.detection.mean(metric, group)) is not None:
                    found[prefix + metric] = value
        for name, values in self.detection.sets.items():
            found |= {f"ood/{name}/{metric}": values[metric] for metric in METRICS}
        return found


@dataclass(frozen=True)
class SeedMean:
    """Runs of several seeds by one detector."""

    family: str  # as of `Evaluated`
    title: str  # likewise
    detector: str
    seeds: tuple[int, ...]  # in the runs' order
    mean: Mapping[str, float]  # of each number (`Evaluated.numbers`) over the seeds
    std: Mapping[str, float]  # its sample standard deviation (divisor n − 1)


def evaluated(evaluator: Evaluator, subject: Subject, run: str, detector: str | None) -> Evaluated:
    """The row of one run and one detector."""
    return Evaluated(
        run=run,
        seed=subject.config.seed,
        family=family_of(subject),
        title=subject.config.title,
        predictions=evaluator.predictions,
        detection=evaluator.detection(detector),
    )


def family_of(subject: Subject) -> str:
    """A text that is the same for runs that differ in their seed, name and weights' file alone.

    Whether there is such a file counts: a run that begins with weights is not of the family of one
    that begins with none.
    """
    told: dict[str, Any] = subject.config.model_dump(mode="json")
    for key in ("name", "seed", "verify"):
        told.pop(key, None)
    for section, key in (("model", "weights"), ("train", "init")):
        begun = (told.get(section) or {}).get(key)
        if begun:
            begun["weights"] = "a file"
    return json.dumps(told, sort_keys=True)


def over_seeds(rows: Sequence[Evaluated]) -> list[SeedMean]:
    """Mean and deviation of each family and detector that has two runs or more.

    There is none where a seed is unknown or occurs twice: such runs are not known to be independent
    draws of one training, and a deviation over them would say something else.
    """
    groups: dict[tuple[str, str], list[Evaluated]] = {}
    for row in rows:
        groups.setdefault((row.family, row.detection.detector), []).append(row)
    means = []
    for (family, detector), members in groups.items():
        seeds = tuple(row.seed for row in members if row.seed is not None)
        if len(members) < 2 or len(set(seeds)) < len(members):
            continue
        numbers = [row.numbers() for row in members]
        values = {k: np.array([n[k] for n in numbers]) for k in numbers[0]}
        means.append(
            SeedMean(
                family=family,
                title=members[0].title,
                detector=detector,
                seeds=seeds,
                mean={k: float(v.mean()) for k, v in values.items()},
                std={k: float(v.std(ddof=1)) for k, v in values.items()},
            )
        )
    return means
