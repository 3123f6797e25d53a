"""What `scaling.py` times: a series of sizes for each quantity that a user can make large."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scaling_inputs import certificates, trained_run
from torch import Tensor, nn
from train_step import Bench

from greg_cert.config import VerifyConfig
from greg_cert.evaluation import Evaluator
from greg_cert.models import Classifier, build_model
from greg_cert.report import write_figures, write_report
from greg_cert.runs.records import RunFolder
from greg_cert.runs.subjects import open_subject
from greg_cert.train import two_ended_sample
from greg_cert.train.outliers.choose import posterior_between
from greg_cert.train.outliers.posterior import posterior_sample
from greg_cert.verify import certify, gradient_norm
from greg_cert.verify.run.runs import verify_runs

Action = Callable[[], dict[str, Any] | None]
DIM = 128  # of features, where they do not grow
PER_IMAGE = 6  # candidates for each ID image
POOL_PART = 2**14  # rows of a pool that the posterior is given at once
RUNS = 6
SLOPE = 0.05  # distance of the threshold, in slopes


@dataclass(frozen=True)
class Series:
    """One quantity against one size."""

    axis: str  # what grows
    sizes: tuple[int, ...]
    prepare: Callable[[Path, int], Action]  # in a folder, at a size: what is timed, warmed up


def training_step(step: str, model: str, axis: str, fixed: int, _: Path, size: int) -> Action:
    """One of the steps of `train_step.py`, with as many ID images as outliers."""
    batch, side = (size, fixed) if axis == "batch" else (fixed, size)
    options = {"device": "cpu", "model": model, "batch": batch, "size": side}
    bench = Bench(argparse.Namespace(**options, precision="float32", compile=False), True)
    action: Action = {"energy": bench.value_only, "greg": bench.ours, "greg+": bench.plus}[step]
    action()
    return action


def clustering(clusters: int | None, _: Path, size: int) -> Action:
    """k-means and both ends of each cluster; k is a sixth of the candidates where None."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2000, DIM, generator=generator)
    features = 0.5 * torch.randn(size, DIM, generator=generator)
    features += centres[torch.randint(len(centres), (size,), generator=generator)]
    scores = torch.randn(size, generator=generator)
    k = clusters or size // PER_IMAGE
    two_ended_sample(features[:64], scores[:64], 8, generator=generator)

    def action() -> None:
        two_ended_sample(features, scores, k, generator=generator.manual_seed(1))

    return action


def posterior(grows: str, _: Path, size: int) -> Action:
    """POEM's posterior of ID images and six times as many candidates, and the choice by a draw."""
    candidates, dim = (size, DIM) if grows == "N" else (1536, size)
    known = torch.randn(candidates // PER_IMAGE, dim)
    features = torch.randn(candidates, dim) + 0.5
    generator = torch.Generator().manual_seed(0)

    def action() -> None:
        found = posterior_between(known, features.split(POOL_PART))
        posterior_sample(features, found, len(known), generator)

    action()
    return action


def proof(method: str, build: Callable[[int], tuple[nn.Module, int]], _: Path, size: int) -> Action:
    """`certify` of four images of noise by random weights, cuts and attack left out."""
    torch.manual_seed(0)
    model, side = build(size)
    x = torch.rand(4, 1, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        highest = float(-model.eval()(x).logsumexp(1).min())
    gamma = highest + SLOPE * float(gradient_norm(model, x).median())
    options: dict[str, Any] = {"cuts": 0} if method == "crown" else {}
    return partial(
        _certified, model, x, gamma, method=method, attack=False, lipschitz=False, **options
    )


def _certified(model: nn.Module, x: Tensor, gamma: float, **options: Any) -> dict[str, Any]:
    found = certify(model, x, gamma, **options)
    return {"certified": int((found.radius_certified > 0).sum())}


def small_cnn(side: int) -> tuple[nn.Module, int]:
    """`cnn_small` for images of that side."""
    shape = {"num_classes": 10, "in_channels": 1, "image_size": side}
    return build_model("cnn_small", **shape, mean=[0.5], std=[0.3]), side


def deep_mlp(depth: int) -> tuple[nn.Module, int]:
    """That many hidden layers of 128 units, on 8×8 images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(128 if i else 64, 128), nn.ReLU()]
    body = nn.Sequential(*layers)
    return Classifier(body, 128, num_classes=10, mean=[0.5], std=[0.3]), 8


def verify(method: str, folder: Path, size: int) -> Action:
    """`verify_runs` of some of a run's 10,000 test digits: shards, tables and pictures.

    Cuts, Lipschitz columns and attacks are left out: they cost a sample what they cost, and what
    is asked here is what comes with their number.
    """
    run = RunFolder(trained_run(folder, 8, 10_000))
    options = {"attack": False, "lipschitz": False}
    settings = VerifyConfig(method=method, cuts=0, options=options, device="cpu")

    def action(size: int = size) -> dict[str, Any]:
        out = Path(tempfile.mkdtemp(dir=folder))
        done = verify_runs([run], settings.model_copy(update={"samples": size}), out)
        return {
            "samples": done.samples,
            "shards": len(list((out / "shards").glob("*.parquet"))),
            "folder_bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
        }

    action(8)
    return action


def report(folder: Path, size: int) -> Action:
    """`write_report` of six runs: ID samples, as many of an OOD set, and all scores."""
    write_figures(certificates(folder / "small", RUNS, 100), only=["radius_histogram"])
    results = certificates(folder / f"results-{size}", RUNS, size)

    def action() -> dict[str, Any]:
        files = write_report(results)
        return {
            "page_bytes": files.html.stat().st_size,
            "folder_bytes": sum(file.stat().st_size for file in files),
        }

    return action


def evaluate(detector: str | None, folder: Path, size: int) -> Action:
    """All of an evaluation of a run on 28×28 digits and that many images of noise in a `.npy`."""
    run = trained_run(folder, 28, 1000)
    noise = np.random.default_rng(0).integers(256, size=(size, 1, 28, 28), dtype=np.uint8)
    file = folder / f"noise-{size}.npy"
    np.save(file, noise)
    del noise
    Evaluator(run, scores=False).eval_ood(detector)

    def action() -> None:
        source = f"{{source: array, path: {file}, layout: nchw}}"
        Evaluator(open_subject(run, [f"data.ood=[{source}]"]), scores=False).eval_ood(detector)

    return action


STEPS = (  # model, what grows, its sizes, the other one
    ("cnn_small", "batch", (16, 64, 256), 32),
    ("cnn_small", "image side", (32, 64, 128), 32),
    ("wrn16_2", "batch", (8, 16, 32, 64), 32),
    ("wrn16_2", "image side", (16, 32, 64), 16),
)
PROOFS = ("crown-ibp", "crown", "sdp-crown")
DETECTORS = {"own score": None, "knn": "knn", "ash": "ash"}
SERIES: dict[str, dict[str, Series]] = {
    "step": {
        f"{model}, {'side' if axis == 'batch' else 'batch'} {fixed}, {step}": Series(
            axis, sizes, partial(training_step, step, model, axis, fixed)
        )
        for model, axis, sizes, fixed in STEPS
        for step in ("energy", "greg", "greg+")
    },
    "clustering": {
        "k = N/6": Series("N", (384, 768, 1536, 3072), partial(clustering, None)),
        "k = 64": Series("N", (4096, 16384, 65536), partial(clustering, 64)),
        f"POEM, D = {DIM}": Series("N", (1536, 12288, 98304), partial(posterior, "N")),
        "POEM, N = 1,536": Series("D", (128, 512, 2048), partial(posterior, "D")),
    },
    "proof": {
        **{
            f"{method}, cnn_small": Series(
                "image side", (8, 16, 32), partial(proof, method, small_cnn)
            )
            for method in PROOFS
        },
        **{
            f"{method}, mlp": Series("hidden layers", (2, 4, 8), partial(proof, method, deep_mlp))
            for method in PROOFS
        },
    },
    "verify": {
        method: Series("samples", (100, 1000, 10_000), partial(verify, method))
        for method in ("crown-ibp",)
    },
    "report": {f"{RUNS} runs": Series("samples", (100, 1000, 10_000), report)},
    "evaluate": {
        name: Series("OOD images", (1000, 10_000, 100_000), partial(evaluate, detector))
        for name, detector in DETECTORS.items()
    },
}
