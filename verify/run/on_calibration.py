"""A trained run measured on its calibration split, where settings may be chosen by what is seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from greg_cert.certificates.certified_metrics import median_radius
from greg_cert.certificates.format import CONTRADICTED, REJECTED, UNDECIDED
from greg_cert.certificates.methods import chosen_methods
from greg_cert.config import VerifyConfig
from greg_cert.data import DataSplits, Images
from greg_cert.errors import UnsupportedModelError
from greg_cert.metrics import accuracy, auroc, calibration_error, fpr_at_tpr, threshold_at_tpr
from greg_cert.runs.inference import logits_of
from greg_cert.scores import score_of
from greg_cert.verify.lipschitz import global_lipschitz_radius
from greg_cert.verify.run.run_certifier import RunCertifier
from greg_cert.verify.run.selection import choose_samples
from greg_cert.verify.run.tasks import chunk_size

Progress = Callable[[int, int], None]
"""Called with (samples certified, samples in all)."""


@dataclass(frozen=True)
class OnCalibration:
    """What `measure` found."""

    numbers: dict[str, float | None]  # of `tuned_runs.NUMBERS`, all but those of training
    error: str | None = None  # why there are no certificates


def measure(
    model: nn.Module,
    splits: DataSplits,
    held_out: Images | None,
    settings: VerifyConfig,
    *,
    score: str,
    progress: Progress | None = None,
) -> OnCalibration:
    """Accuracy, detection, calibration error and radii of a model, without a look at test data.

    Threshold, accuracy and ID scores are of the same images, so shares at the threshold are what
    they are by its choice.

    Args:
        model: from raw images to logits, on the device where it is to run.
        splits: of which only the calibration split is read.
        held_out: outliers that training did not see; None where there are none.
        settings: `tpr`, and how many samples are certified and how.
        score: OOD score.
        progress: called after each chunk of samples.
    """
    score_fn, calibration = score_of(score), splits.calibration
    logits = logits_of(model, calibration)
    scores, known = score_fn(logits), logits[:, : splits.num_classes]
    assert calibration.labels is not None
    confidence, predicted = known.softmax(1).max(1)
    gamma = threshold_at_tpr(scores, settings.tpr)
    numbers: dict[str, float | None] = {
        "accuracy": accuracy(known, calibration.labels),
        "calibration_error": calibration_error(
            confidence.clamp(max=1).numpy(), (predicted == calibration.labels).numpy()
        ),
        "threshold": gamma,
    }
    if held_out is not None:
        outliers = score_fn(logits_of(model, held_out))
        numbers["auroc"] = auroc(scores, outliers)
        numbers["fpr"] = fpr_at_tpr(scores, outliers, settings.tpr)
    try:
        numbers |= _radii(model, calibration, gamma, settings, score, progress)
    except UnsupportedModelError as error:
        return OnCalibration(numbers, str(error))
    return OnCalibration(numbers)


def _radii(
    model: nn.Module,
    images: Images,
    gamma: float,
    settings: VerifyConfig,
    score: str,
    progress: Progress | None,
) -> dict[str, float | None]:
    """Medians over the accepted ones of the chosen samples; an undecided one has the radius 0.

    The share is that of the attack's radius, over those that have one.
    """
    start = time.process_time()
    chosen = choose_samples(len(images), settings.samples, settings.seed)
    size = settings.batch or chunk_size(model, images.image_shape, chosen_methods(settings.method))
    certifier = RunCertifier(model, gamma, "id", settings, score, images.image_shape)
    frames = []
    for rows in chosen.split(size):
        frames.append(certifier.certify(images, rows))
        if progress is not None:
            progress(sum(map(len, frames)), len(chosen))
    frame = pd.concat(frames, ignore_index=True)
    seconds = (time.process_time() - start) / len(chosen)
    status = frame["status"].to_numpy(dtype=str)
    accepted = status != REJECTED
    proven = frame["radius_certified"].to_numpy(dtype=float)[accepted]
    broken = frame["radius_attack"].to_numpy(dtype=float)[accepted]
    lipschitz = None  # the median of (γ − S)/L̄
    if accepted.any():
        radii = global_lipschitz_radius(
            model,
            images.pixels(chosen[torch.from_numpy(accepted)]),
            gamma,
            norm=settings.norm_value,
            max_radius=settings.max_radius,
            score=score,
        )
        lipschitz = median_radius(radii.cpu().numpy())
    usable = np.isfinite(broken) & (broken > 0)
    ratio = proven[usable] / broken[usable]
    return {
        "samples": len(chosen),
        "accepted": int(accepted.sum()),
        "undecided": int((status == UNDECIDED).sum()),
        "capped": int((proven >= settings.max_radius).sum()),
        "violations": int((status == CONTRADICTED).sum()),
        "radius_certified": median_radius(proven) if len(proven) else None,
        "radius_attack": median_radius(broken) if len(broken) else None,
        "share": float(np.median(ratio)) if len(ratio) else None,
        "radius_lipschitz": lipschitz,
        "certify_cpu_seconds": seconds,
    }
