"""What `scaling.py` measures on: a run trained for a moment, and made-up verification folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from greg_cert.certificates.certificate_counts import id_side, ood_sides
from greg_cert.certificates.folder import Tables, write_folder
from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, write_pictures
from greg_cert.certificates.robust_samples import shown_samples
from greg_cert.config import ExperimentConfig
from greg_cert.data import load_data
from greg_cert.metrics import detection_metrics
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit

CLASSES = 10
THRESHOLD = -13.7
OOD = "noise"
PICTURED = (1, 28, 28)  # shape of the images of the made-up certificates


def digits(folder: Path, side: int, count: int, seed: int) -> dict[str, Any]:
    """Data source of `count` digits of `side` pixels, no two alike: scikit-learn's with noise."""
    path = folder / f"digits-{side}-{count}.npz"
    rng = np.random.default_rng(seed)
    found = load_digits()
    chosen = np.arange(count) % len(found.target)
    images = torch.from_numpy(found.images[chosen] / 16).float().unsqueeze(1)
    if side != images.shape[-1]:
        images = interpolate(images, side, mode="bilinear", antialias=True)
    noise = rng.normal(0, 0.05, images.shape)
    pixels = np.rint(255 * np.clip(images.numpy() + noise, 0, 1)).astype(np.uint8)
    np.savez(path, images=pixels, labels=found.target[chosen])
    return {"source": "array", "path": str(path), "scale": 255}


def trained_run(folder: Path, side: int, test: int) -> Path:
    """Folder of a `cnn_small`, trained for 3 epochs on digits, with a test split of that size.

    Trained once for a `folder`.
    """
    out = folder / f"run-{side}-{test}"
    if RunFolder(out).complete:
        return out
    config = ExperimentConfig.model_validate(
        {
            "data": {
                "id": {**digits(folder, side, 2000, seed=0), "name": "digits"},
                "id_test": {**digits(folder, side, test, seed=1), "name": "digits-test"},
                "ood": [{"source": "uniform", "n": 100}],
            },
            "model": {"name": "cnn_small"},
            "train": {"stages": [{"method": "ce", "epochs": 3, "lr": 0.05, "batch_size": 32}]},
        }
    )
    return fit(config, load_data(config.data), out).path


def certificates(folder: Path, runs: int, samples: int) -> Path:
    """A verification folder of made-up radii: ID samples, as many of an OOD set, all scores.

    Radii, gaps between them, and shares of rejected and undecided samples are such as digits gave.
    """
    folder.mkdir(exist_ok=True)
    tables, records, pictures = [], {}, []
    for k in range(runs):
        rng = np.random.default_rng(k)
        name = f"run {k}"
        known = THRESHOLD + 0.9 - rng.gamma(4.0, 0.7, samples)
        strange = THRESHOLD - 1.6 + rng.gamma(4.0, 1.2, samples)
        rows = _rows(rng, name, known, known > THRESHOLD, 1 + 0.2 * k)
        ood = _rows(rng, name, strange, strange <= THRESHOLD, 1.0)
        ood = ood.drop(columns=["label", "correct"])
        ood.insert(1, "dataset", OOD)
        parts = {"test": rows["score"].to_numpy(), f"ood/{OOD}": ood["score"].to_numpy()}
        scores = pd.concat(
            [
                pd.DataFrame({"run": name, "part": part, "index": range(samples), "score": values})
                for part, values in parts.items()
            ],
            ignore_index=True,
        )
        tables.append(Tables(rows, ood, pd.DataFrame(), scores))
        records[name] = _record(rows, ood)
        pictures += _pictures(rng, rows)
    summary = {
        "norm": 2.0,
        "tpr": 0.95,
        "max_radius": 2.0,
        "side": "id",
        "sides": ["id", "ood"],
        "samples": samples,
        "wanted": samples,
        "baseline": "run 0",
        "runs": records,
    }
    write_folder(folder, tables, summary)
    write_pictures(folder / PICTURES, pictures)
    return folder


def _rows(
    rng: np.random.Generator, run: str, score: np.ndarray, rejected: np.ndarray, ease: float
) -> pd.DataFrame:
    """Certificates of samples with these scores; 1 % of those that are kept are undecided."""
    count = len(score)
    certified = 0.19 * ease * rng.gamma(6.0, 1 / 6.0, count)
    attack = certified * (1 + rng.gamma(8.0, 0.1, count))
    proven = np.where(rng.random(count) < 0.01, "undecided", "certified")
    status = np.where(rejected, "rejected", proven)
    certified[status != "certified"] = 0.0
    attack[rejected] = 0.0
    norm = 2.0 / np.maximum(attack, 0.05)
    label = np.arange(count) % CLASSES
    return pd.DataFrame(
        {
            "run": run,
            "method": "energy",
            "index": np.arange(count),
            "label": label,
            "predicted": label,
            "correct": True,
            "status": status,
            "score": score,
            "threshold": THRESHOLD,
            "gradient_norm": norm,
            "lipschitz": 2 * norm,
            "radius_gradient": 1.15 * attack,
            "radius_lipschitz": 0.5 * certified,
            "radius_certified": certified,
            "radius_attack": attack,
            "violation": False,
        }
    )


def _record(rows: pd.DataFrame, ood: pd.DataFrame) -> dict[str, Any]:
    """The run's entry in `summary.json`."""
    found = detection_metrics(rows["score"].to_numpy(), ood["score"].to_numpy())
    return {
        "method": "energy",
        "id_accuracy": 0.98,
        "threshold": THRESHOLD,
        "test_tpr": float((rows["score"] <= rows["threshold"]).mean()),
        **found,
        "ood": {OOD: found},
        "ood_side": ood_sides(ood),
        **id_side(rows),
        "seconds": 4.2,
    }


def _pictures(rng: np.random.Generator, rows: pd.DataFrame) -> list[SamplePicture]:
    """Of the samples that the page lists: noise, with a perturbation as long as the attack's."""
    pictures = []
    for row in shown_samples(rows).to_dict("records"):
        radius = float(row["radius_attack"])
        change = rng.normal(size=PICTURED)
        change *= radius / np.linalg.norm(change)
        pictures.append(
            SamplePicture(
                run=str(row["run"]),
                dataset="",
                index=int(row["index"]),
                threshold=float(row["threshold"]),
                score=float(row["score"]),
                clean=rng.integers(256, size=PICTURED, dtype=np.uint8),
                difference=change.astype(np.float32) if math.isfinite(radius) else None,
                radius=radius,
                attacked_score=float(row["threshold"]) + 0.01,
                attacked_class=int(row["predicted"]),
            )
        )
    return pictures
