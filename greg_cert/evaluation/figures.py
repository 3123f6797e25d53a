"""What is measured of a model: predictions, detection by one detector, and both in short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from greg_cert.data.groups import Group
from greg_cert.metrics import FloatArray, calibration_error

METRICS = ("fpr95", "auroc", "aupr_in", "aupr_out", "fpr95_ood_recall")


@dataclass(frozen=True)
class Predictions:
    """What a model says of the ID test split.

    Attributes:
        label: (N,) true classes.
        predicted: (N,) classes of the largest logit among the ID classes.
        confidence: (N,) softmax probability of it, over the ID classes.
    """

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float((self.label == self.predicted).mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 15 bins (`greg_cert.metrics.calibration_error`)."""
        return calibration_error(self.confidence, self.label == self.predicted)


@dataclass(frozen=True)
class Detection:
    """How one detector tells OOD test sets from the ID test split.

    Attributes:
        detector: its name, with the options that are not the defaults.
        tpr: share of the calibration split that `threshold` accepts.
        threshold: γ, from the calibration split alone; a sample is accepted iff its score is ≤ γ.
        test_tpr: share of the ID test split that γ accepts.
        scores: (N,) scores by part: `calibration`, `test`, `ood/NAME`; higher = more OOD.
        sets: metrics (`METRICS`) of each OOD test set, by name.
        groups: `near`, `far` or None for each OOD test set.
    """

    detector: str
    tpr: float
    threshold: float
    test_tpr: float
    scores: Mapping[str, FloatArray]
    sets: Mapping[str, Mapping[str, float]]
    groups: Mapping[str, Group | None]

    def mean(self, metric: str, group: Group | None = None) -> float | None:
        """Unweighted mean of a metric over the OOD sets of a group, or over all; None without."""
        names = [n for n in self.sets if group is None or self.groups.get(n) == group]
        return float(np.mean([self.sets[n][metric] for n in names])) if names else None

    def table(self) -> pd.DataFrame:
        """A row for each OOD set, then means over near, far (where there are any) and all sets."""
        rows = list(self.sets.items())  # no dict: a set may be called as a mean is
        groups: tuple[Group | None, ...] = ("near", "far", None)
        for group in groups:
            found = {m: v for m in METRICS if (v := self.mean(m, group)) is not None}
            rows += [(f"{group} OOD" if group else "mean", found)] if found else []
        index = pd.Index([title for title, _ in rows], name="OOD set")
        return pd.DataFrame([values for _, values in rows], index=index, columns=list(METRICS))


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, threshold and detection metrics of one model.

    Attributes:
        id_accuracy: on the ID test split.
        tpr: share of the calibration split that the threshold accepts.
        threshold: γ, from the calibration split alone.
        test_tpr: share of the ID test split that γ accepts.
        ood: for each OOD test set its metrics, by name.
        scores: OOD scores of the test split (`test`) and of each OOD test set (`ood/NAME`).
    """

    id_accuracy: float
    tpr: float
    threshold: float
    test_tpr: float
    ood: dict[str, dict[str, float]]
    scores: dict[str, list[float]] = field(default_factory=dict, repr=False)

    def mean(self, metric: str) -> float | None:
        """Unweighted mean of a metric over the OOD test sets; None without any."""
        found = [values[metric] for values in self.ood.values()]
        return float(np.mean(found)) if found else None
