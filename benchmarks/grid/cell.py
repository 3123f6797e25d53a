"""What is measured of one run of the grid: a cell."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from page_parts import folder_name

from greg_cert.certificates.certified_metrics import adversarial_auroc, guaranteed_auroc
from greg_cert.config import VerifyConfig
from greg_cert.data import DataSplits, Images, load_data
from greg_cert.evaluation import Evaluator
from greg_cert.files import write_atomic
from greg_cert.report import load_results
from greg_cert.runs.records import RunFolder, environment
from greg_cert.scores import score_of
from greg_cert.train import fit
from greg_cert.verify import global_lipschitz_bound, score_bound
from greg_cert.verify.attack.pgd import attacked_scores
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.run.runs import verify_runs
from greg_cert.verify.run.selection import choose_samples
from greg_cert.verify.scorer import Margin, score_function
from grid.tasks import RUNS, TASKS, proof

BATCH = 50  # samples certified at once
AUC_RADII = (0.05, 0.1)  # ℓ2
AUC_SAMPLES = 60  # of each OOD set
GRADIENTS = 500  # samples of each set whose gradient is taken
ROW = ("index", "radius_certified", "radius_attack", "radius_gradient")


@cache
def task_data(task: str, work: Path) -> DataSplits:
    """Of all its runs and seeds."""
    return load_data(TASKS[task].experiment("start", {}, 0, work).data)


def trained(task: str, run: str, chosen: dict[str, float], seed: int, work: Path) -> RunFolder:
    """The complete run, from the task's first stage where it can be."""
    what, folder = TASKS[task], work / f"{task}-{seed}"
    start, path = folder / "start", folder / folder_name(run)
    if (done := RunFolder(path)).complete:
        return done
    splits = task_data(task, work)
    if not RUNS[run].alone:
        fit(what.experiment("start", {}, seed, work), splits, start, resume=start.exists())
    begun, fresh = time.process_time(), not path.exists()
    config = what.experiment(run, chosen, seed, work, start)
    found = fit(config, splits, path, resume=not fresh)
    if fresh:  # else it is the time of the last part alone
        write_atomic(path / "seconds.json", json.dumps(time.process_time() - begun))
    return found


def measured(
    task: str, run: str, chosen: dict[str, float], seed: int, work: Path
) -> dict[str, Any]:
    """Everything that is told of a run."""
    folder = trained(task, run, chosen, seed, work)
    splits = task_data(task, work)
    evaluator = Evaluator(folder.path, splits)
    predicted, detection = evaluator.predictions, evaluator.detection()
    seconds = folder.path / "seconds.json"
    found: dict[str, Any] = {
        "task": task,
        "run": run,
        "seed": seed,
        "chosen": chosen,
        "stages": [stage.model_dump(mode="json") for stage in folder.config.train.stages],
        "margins": folder.manifest["stages"],
        "score": folder.config.score,
        "model": folder.config.model.model_dump(mode="json"),
        "weights": folder.weights_digest,
        "threshold": detection.threshold,
        "accuracy": predicted.accuracy,
        "ece": predicted.calibration_error,
        "ood": {k: {m: v[m] for m in ("auroc", "fpr95")} for k, v in detection.sets.items()},
        "groups": evaluator.groups,
        "train_seconds": float(seconds.read_text()) if seconds.exists() else None,
    }
    model = evaluator.model.eval().double()
    found["gradient"] = {
        name: gradient_norms(model, images, folder.config.score)
        for name, images in {"id": splits.test, **splits.ood}.items()
    }
    if samples := TASKS[task].samples:
        found["lipschitz"] = global_lipschitz_bound(
            model, splits.test.image_shape, score=folder.config.score
        )
        found["auc"] = perturbed_auc(model, splits, folder.config.score)
        out = folder.path.with_name(f"{folder.path.name}-verify")
        found["radii"] = {n: radii(folder, splits, n, samples, out) for n in ("2", "inf")}
    return found | environment("cpu, one thread")


def gradient_norms(model: torch.nn.Module, images: Images, score: str) -> float:
    """Median ‖∇S‖₂ of some samples of a set, by raw pixels."""
    x = _some(images, GRADIENTS).requires_grad_()
    (slope,) = torch.autograd.grad(score_of(score)(model(x)).sum(), x)
    return float(slope.flatten(1).norm(dim=1).quantile(0.5))


def perturbed_auc(model: torch.nn.Module, splits: DataSplits, score: str) -> dict[str, Any]:
    """GAUC (proof) and AAUC (attack) of each OOD set at each radius, ID samples being clean."""
    with torch.no_grad():
        clean = score_of(score)(model(_some(splits.test, 1000))).numpy()
    attacked_score, plan = score_function(model, score), AttackPlan(Margin(0.0, "ood"))
    found: dict[str, Any] = {}
    for name, images in splits.ood.items():
        x = _some(images, AUC_SAMPLES)
        for radius in AUC_RADII:
            bound = score_bound(model, x, radius, score=score)
            balls = torch.full((len(x),), radius).double()
            attacked = attacked_scores(attacked_score, x, balls, plan)
            found.setdefault(name, {})[f"{radius:g}"] = [
                guaranteed_auroc(clean, bound.numpy()),
                adversarial_auroc(clean, attacked.numpy()),
            ]
    return found


def _some(images: Images, count: int) -> torch.Tensor:
    """So many images of a set in float64, the same ones each time."""
    return images.pixels(choose_samples(len(images), min(count, len(images)), 0)).double()


@dataclass(frozen=True)
class Loaded(RunFolder):
    """A run folder whose data are in memory: a cell reads them once."""

    splits: DataSplits = field(kw_only=True)

    def load_data(self) -> DataSplits:
        """The data that were read."""
        return self.splits


def radii(run: RunFolder, splits: DataSplits, norm: str, samples: int, out: Path) -> dict[str, Any]:
    """Certified and attacked radii of the same test samples under each run; rejected ones are 0."""
    how = proof(run.config.score, norm)
    settings = VerifyConfig(samples=samples, batch=BATCH, **how)
    done = verify_runs([Loaded(run.path, splits=splits)], settings, out / norm)
    results = load_results(out / norm)
    name = results.runs[0]
    frame = results.of(name)
    kept = results.kept(name)
    rows = []
    for i, row in enumerate(zip(*(frame[column].tolist() for column in ROW), strict=True)):
        index, *numbers = row
        if not kept[i]:
            numbers = [0.0] * len(numbers)
        rows.append([index, int(kept[i]), *(_short(v) for v in numbers)])
    return {
        "settings": how,
        "violations": done.violations,
        "seconds": results.summary.runs[name].seconds,
        "columns": ["index", "accepted", *ROW[1:]],
        "rows": rows,
    }


def _short(value: float) -> float | None:
    """Five digits; None where there is no number (no attack within the longest radius)."""
    return None if value != value or value == float("inf") else float(f"{value:.5g}")
