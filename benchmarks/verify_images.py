"""How far proofs of ℓ2 radii go at image size, and what they cost.

Run: python benchmarks/verify_images.py RUN [RUN …] [--samples 20] [--methods lipschitz,sdp-crown,…]
[--device cpu|cuda|cuda:N]
[--data DATA]
Each RUN is a run folder, such as of configs/mnist_gregplus.yaml, or NAME.json of a network of
`train_networks.py`, whose data lie in DATA. Times are CPU seconds of this
process on one thread, on a GPU seconds of the clock until it is idle, beside one forward and
backward pass of the network on one sample. An entry
`sdp-crown:ROUNDSxSTEPS` searches for so long, `sdp-crown:ROUNDSxSTEPSxSPLITS` splits as well.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import train_networks
from torch import Tensor, nn

from greg_cert.data import load_data
from greg_cert.devices import device_title, find_device
from greg_cert.evaluation import evaluate_model
from greg_cert.runs.records import RunFolder, environment
from greg_cert.scores import energy
from greg_cert.verify import attack_radius, certify
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.run.selection import choose_samples
from greg_cert.verify.scorer import score_and_gradient, score_function

METHODS = "lipschitz,crown-ibp,crown,sdp-crown,sdp-crown:25x40"
MAX_RADIUS = 3.0
ATTACK = (60, 5, 60)  # steps, restarts, steps along the boundary


def now(device: torch.device) -> float:
    """Seconds of this process, or of the clock once the GPU has done what it was given."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def pass_seconds(model: nn.Module, x: Tensor) -> float:
    """Seconds of one forward and backward pass of one sample in float64, the least of many."""
    score, found = score_function(model), []
    for _ in range(20):
        start = now(x.device)
        score_and_gradient(score, x[:1])
        found.append(now(x.device) - start)
    return min(found)


@dataclass(frozen=True)
class Subject:
    """What is measured: a network in float64, some accepted samples, and how good it is."""

    name: str
    model: nn.Module
    x: Tensor
    threshold: float
    about: dict[str, Any]


def subject(
    path: Path, data: Path | None, samples: int, seed: int, device: torch.device
) -> Subject:
    """Of a run folder, or of a network of `train_networks.py` by its JSON and the data's folder."""
    about: dict[str, Any]
    if path.suffix == ".json":
        assert data is not None
        made = json.loads(path.read_text(encoding="utf-8"))
        recipe = train_networks.Recipe(**made["recipe"])
        model: nn.Module = train_networks.load(path.stem, path.parent)
        splits, threshold = train_networks.data_of(recipe, data), made["threshold"]
        about = {"accuracy": made["accuracy"], "auroc": made["auroc"]}
    else:
        folder = RunFolder(path)
        model, splits = folder.load_model(), load_data(folder.config.data)
        evaluation = evaluate_model(model.to(device), splits)
        threshold = evaluation.threshold
        about = {"method": folder.config.method, "accuracy": evaluation.id_accuracy}
        about["auroc"] = evaluation.mean("auroc")
    chosen = choose_samples(len(splits.test), samples, seed)
    x = splits.test.pixels(chosen).to(device, torch.float64)
    model = model.to(device).double()
    with torch.no_grad():
        x = x[energy(model(x)) <= threshold]
    return Subject(path.stem, model, x, threshold, about)


def measure(
    run: Path,
    data: Path | None,
    samples: int,
    methods: list[str],
    seed: int,
    device: torch.device,
    attack_effort: tuple[int, ...],
) -> dict[str, Any]:
    found = subject(run, data, samples, seed, device)
    model, x, gamma = found.model, found.x, found.threshold
    attack = attack_radius(
        model, x, gamma, max_radius=MAX_RADIUS, seed=seed, steps=attack_effort[0],
        restarts=attack_effort[1], polish=attack_effort[2],
    )  # fmt: skip
    rows: dict[str, Any] = {}
    one = pass_seconds(model, x)
    for entry in methods:
        method, _, effort = entry.partition(":")
        options: dict[str, Any] = {}
        if effort:
            options["coupled"] = CoupledEffort(*map(int, effort.split("x")))
        certify(model, x[:1], gamma, method=method, attack=False, lipschitz=False, **options)
        start = now(device)
        radii = certify(
            model, x, gamma, method=method, max_radius=MAX_RADIUS, attack=False, lipschitz=False,
            **options,
        ).radius_certified  # fmt: skip
        seconds = (now(device) - start) / len(x)
        near = attack.isfinite()
        rows[entry] = {
            "median": float(radii.median()),
            "share": float((radii / attack)[near].median()),
            "seconds": seconds,
            "passes": seconds / one,
            "positive": int((radii > 0).sum()),
            "above_attack": int((radii > attack).sum()),
        }
        shown = {k: float(f"{v:.3g}") for k, v in rows[entry].items()}
        print(f"{found.name:>12} {entry:>18} {shown}", flush=True)
    return {
        "run": found.name,
        **found.about,
        "samples": len(x),
        "attack_median": float(attack.median()),
        "pass_seconds": one,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument(
        "--attack", default=",".join(map(str, ATTACK)), help="STEPS,RESTARTS,POLISH"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None and any(run.suffix == ".json" for run in given.runs):
        parser.error("expected --data for a network of train_networks.py")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    device = find_device(given.device)
    methods = given.methods.split(",")
    effort = tuple(int(n) for n in given.attack.split(","))
    results = [
        measure(run, given.data, given.samples, methods, given.seed, device, effort)
        for run in given.runs
    ]
    for result in results:
        print(json.dumps({k: v for k, v in result.items() if k != "rows"}))
    if given.json is not None:
        record = {
            "environment": environment(device_title(device)),
            "seed": given.seed,
            "results": results,
        }
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
