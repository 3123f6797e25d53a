"""Verifying trained runs: the same test samples for each, one table of certificates."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from greg_cert.config import VerifyConfig, dump_config
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import RunError
from greg_cert.evaluation import Evaluation, evaluate_model
from greg_cert.files import write_atomic
from greg_cert.inference import logits_of
from greg_cert.models import Classifier
from greg_cert.records import RunFolder, environment
from greg_cert.verify.attack import AttackPlan, attack_within
from greg_cert.verify.certify import certify
from greg_cert.verify.engine import resolve_engine
from greg_cert.verify.scorer import Margin, score_function

Progress = Callable[[str, int, int], None]
"""Called with (run, samples done, samples in all)."""

_AUDIT_STEPS = 40
_AUDIT_RESTARTS = 3
_AUDIT_BATCH = 128


@dataclass(frozen=True)
class VerifiedRun:
    """One run's rows and its entry in `summary.json`."""

    name: str
    frame: pd.DataFrame
    summary: dict[str, Any]


def verify_runs(
    runs: Sequence[RunFolder],
    settings: VerifyConfig,
    out: Path,
    *,
    baseline: RunFolder | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> list[VerifiedRun]:
    """Certify the same ID test samples under every run and write both result files.

    Writes `certificates.parquet` and `summary.json` (DESIGN §4) into `out`. Every certificate is
    attacked inside its own radius; successes are counted as `violations`.

    Args:
        runs: complete run folders, all of the same data.
        settings: threshold, norm, samples, method.
        out: folder to write to; made if it is missing.
        baseline: the one of `runs`, or another, that the others are compared with; it comes first.
        command: the command line, for the record.
        progress: called after each batch.

    Raises:
        RunError: for runs of different data, or data that changed since training.
    """
    ordered = list(runs)
    if baseline is not None:
        ordered = [baseline, *(r for r in ordered if r.path.resolve() != baseline.path.resolve())]
    names = _names(ordered)
    for run in ordered:
        if run.config.score != "energy":
            raise RunError(
                f"run: expected one with the energy score, which certificates are about, but "
                f"{run.path} was trained for {run.config.score}"
            )
    models = [run.load_model() for run in ordered]  # what is missing shows before hours are spent
    splits = common_data(ordered)
    indices = choose_samples(len(splits.test), settings.samples, settings.seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"out: cannot write to {out}: {error}") from error
    done = [
        _verify(run, name, model, splits, indices, settings, progress)
        for run, name, model in zip(ordered, names, models, strict=True)
    ]
    frame = pd.concat([d.frame for d in done], ignore_index=True)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomic(out / "certificates.parquet", buffer.getvalue())
    summary = {
        "schema": 1,
        "norm": settings.norm_value if settings.norm == "2" else "inf",
        "tpr": settings.tpr,
        "max_radius": settings.max_radius,
        "side": "id",
        "clip": False,
        "method": settings.method,
        "engine": resolve_engine(settings.engine),
        "baseline": names[0] if baseline is not None else None,
        "runs": {d.name: d.summary for d in done},
        "provenance": {
            **environment("cpu"),
            "command": command,
            "seed": settings.seed,
            "settings": settings.model_dump(mode="json"),
            "configs": {n: dump_config(r.config) for n, r in zip(names, ordered, strict=True)},
            "runs": {n: r.manifest for n, r in zip(names, ordered, strict=True)},
        },
    }
    write_atomic(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return done


def choose_samples(count: int, wanted: int | None, seed: int) -> Tensor:
    """Sorted indices of `wanted` test samples, drawn by seed alone; all where that is enough."""
    if wanted is None or wanted >= count:
        return torch.arange(count)
    drawn = np.random.default_rng(seed).choice(count, wanted, replace=False)
    return torch.from_numpy(np.sort(drawn))


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Titles where they differ, else folder names, else paths."""
    choices = (
        [r.config.title for r in runs],
        [r.path.resolve().name for r in runs],
        [str(r.path) for r in runs],
    )
    for names in choices:
        if len(set(names)) == len(names):
            return names
    raise RunError(f"runs: expected different runs, but got {choices[-1]}")


def common_data(runs: Sequence[RunFolder]) -> DataSplits:
    """The data of all runs, which must be one and the same, and what they were trained beside.

    Raises:
        RunError: where a calibration, test or OOD set differs from the first run's, or from what it
            was when the run was trained.
    """
    first = runs[0]
    splits = load_data(first.config.data)
    now = splits.fingerprints()
    for run in runs:
        then = run.manifest["data"]
        for part in now:
            if part in ("train", "aux"):
                continue
            if then.get(part) != now[part]:
                why = (
                    "has changed since training"
                    if run is first
                    else f"differs from that of {first.path}"
                )
                raise RunError(f"run: the {part} split of {run.path} {why}")
    return splits


def _verify(
    run: RunFolder,
    name: str,
    model: Classifier,
    splits: DataSplits,
    indices: Tensor,
    settings: VerifyConfig,
    progress: Progress | None,
) -> VerifiedRun:
    start = time.perf_counter()
    evaluation = evaluate_model(model, splits, tpr=settings.tpr)
    images, norm = splits.test.pixels(indices), settings.norm_value
    certificates = certify(
        model,
        images,
        evaluation.threshold,
        norm=norm,
        lipschitz=True,
        max_radius=settings.max_radius,
        method=settings.method,
        engine=settings.engine,
        seed=settings.seed,
        progress=None if progress is None else lambda done, of: progress(name, done, of),
    )
    violation = _audit(
        model,
        images,
        evaluation.threshold,
        torch.maximum(certificates.radius_certified, certificates.radius_lipschitz),
        certificates.radius_attack,
        settings,
    )
    frame = certificates.to_frame()
    assert splits.test.labels is not None
    labels = splits.test.labels[indices]
    predicted = logits_of(model, splits.test.subset(indices)).argmax(1)
    frame.insert(0, "run", name)
    frame.insert(1, "method", run.config.method)
    frame.insert(2, "index", indices.numpy())
    frame.insert(3, "label", labels.numpy())
    frame.insert(4, "predicted", predicted.numpy())
    frame.insert(5, "correct", (labels == predicted).numpy())
    frame["threshold"] = evaluation.threshold
    frame["violation"] = violation.numpy()
    seconds = time.perf_counter() - start
    return VerifiedRun(name, frame, _summary(run, frame, evaluation, seconds))


def _audit(
    model: Classifier,
    images: Tensor,
    threshold: float,
    certified: Tensor,
    attacked: Tensor,
    settings: VerifyConfig,
) -> Tensor:
    """Whether any attack succeeded inside a proven radius, (B,) bool."""
    violated = (certified > 0) & (attacked <= certified)
    members = (certified > 0).nonzero().squeeze(1)
    plan = AttackPlan(
        Margin(threshold, "id"),
        settings.norm_value,
        settings.seed,
        _AUDIT_STEPS,
        restarts=_AUDIT_RESTARTS,
    )
    score = score_function(model)
    for chunk in members.split(_AUDIT_BATCH):
        hit, _ = attack_within(score, images[chunk].double(), certified[chunk], plan)
        violated[chunk] |= hit
    return violated


def _summary(
    run: RunFolder, frame: pd.DataFrame, evaluation: Evaluation, seconds: float
) -> dict[str, Any]:
    """The run's entry in `summary.json`; medians and means over all samples, rejected ones too."""
    accepted = frame["status"] != "rejected"
    over = frame["radius_gradient"] > frame["radius_attack"]
    return {
        "method": run.config.method,
        "id_accuracy": evaluation.id_accuracy,
        "threshold": evaluation.threshold,
        "fpr95": evaluation.mean("fpr95"),
        "fpr95_ood_recall": evaluation.mean("fpr95_ood_recall"),
        "auroc": evaluation.mean("auroc"),
        "aupr_in": evaluation.mean("aupr_in"),
        "aupr_out": evaluation.mean("aupr_out"),
        "test_tpr": evaluation.test_tpr,
        "ood": evaluation.ood,
        "samples": len(frame),
        "status": {
            s: int((frame["status"] == s).sum()) for s in ("certified", "rejected", "undecided")
        },
        "certified_radius": _spread(frame["radius_certified"]),
        "attack_radius": {
            **_spread(frame["radius_attack"]),
            "found": int(np.isfinite(frame["radius_attack"]).sum()),
        },
        "gradient_radius": {
            **_spread(frame["radius_gradient"]),
            "above_attack": float(over[accepted].mean()) if accepted.any() else None,
        },
        "lipschitz_radius": _spread(frame["radius_lipschitz"]),
        "gradient_norm": _spread(frame["gradient_norm"]),
        "violations": int(frame["violation"].sum()),
        "seconds": round(seconds, 3),
    }


def _spread(values: pd.Series[float]) -> dict[str, float | None]:
    """Median and mean; None for what is not finite, which JSON cannot say."""
    found = {"median": float(values.median()), "mean": float(values.mean())}
    return {k: v if math.isfinite(v) else None for k, v in found.items()}
