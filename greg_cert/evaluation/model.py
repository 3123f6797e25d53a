"""How well a model classifies and detects, before anything is certified."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from greg_cert.data import DataSplits
from greg_cert.metrics import accuracy, detection_metrics, threshold_at_tpr
from greg_cert.runs.inference import logits_of
from greg_cert.scores import score_of


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


def evaluate_model(
    model: nn.Module,
    splits: DataSplits,
    *,
    score: str = "energy",
    tpr: float = 0.95,
    device: torch.device | None = None,
) -> Evaluation:
    """Metrics of a model on the test split and every OOD test set, in float64.

    `score` is one of `greg_cert.scores.SCORES`. An output beyond the ID classes is that of an
    absent class, and never the predicted one.

    FPR95 sets its threshold on the ID test scores, as benchmarks do; `threshold` comes from the
    calibration split and is the γ that certificates are about.
    """
    score_fn = score_of(score)
    calibration = score_fn(logits_of(model, splits.calibration, device=device))
    gamma = threshold_at_tpr(calibration, tpr)
    logits = logits_of(model, splits.test, device=device)
    scores = score_fn(logits)
    assert splits.test.labels is not None
    outliers = {
        name: score_fn(logits_of(model, images, device=device))
        for name, images in splits.ood.items()
    }
    return Evaluation(
        id_accuracy=accuracy(logits[:, : splits.num_classes], splits.test.labels),
        tpr=tpr,
        threshold=gamma,
        test_tpr=float((scores <= gamma).double().mean()),
        ood={name: detection_metrics(scores, values) for name, values in outliers.items()},
        scores={
            "test": scores.tolist(),
            **{f"ood/{name}": values.tolist() for name, values in outliers.items()},
        },
    )
