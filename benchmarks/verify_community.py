"""How far proofs go on networks that others trained, and what they cost in CPU seconds.

Run: python benchmarks/verify_community.py [NAME …] [--norm inf] [--samples 8] [--methods crown,…]
     [--shared SHARED] [--correct] [--json FILE]
SHARED holds `networks/` and `data/`; NAME is a key of `community_networks.NETWORKS`. The score is
energy, its threshold accepts 95 % of 1,000 training images, and samples are the first accepted ones
of the test set; with --correct they stay correctly classified too. Times are CPU seconds of this
process on one thread. The method `branch` begins with crown's bounds, `alpha-crown` needs
auto-LiRPA.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from community_networks import FOLDER, NETWORKS, load
from train_networks import SOURCES

from greg_cert.data import DataSplits, load_data
from greg_cert.data.schema import DataConfig
from greg_cert.metrics import threshold_at_tpr
from greg_cert.runs.records import environment
from greg_cert.scores import energy
from greg_cert.verify import certify

METHODS = {2.0: "lipschitz,crown-ibp,crown,sdp-crown", math.inf: "crown,alpha-crown,branch"}
MAX_RADIUS = {2.0: 3.0, math.inf: 1.0}
STEPS, RESTARTS, POLISH = 60, 5, 60  # of the attack
CALIBRATION = 1000


def images(data: str, folder: Path) -> DataSplits:
    """1,000 and more training images, of which the calibration split is taken, and test images."""
    source = SOURCES[data]
    path = folder / source["id"]["path"]
    config = {
        "id": {**source["id"], "path": path, "limit": 2 * CALIBRATION},
        "id_test": {**source["id_test"], "path": path, "limit": 1000},
        "calibration": 0.5,
    }
    return load_data(DataConfig.model_validate(config))


def measure(
    name: str, splits: DataSplits, norm: float, methods: list[str], samples: int, correct: bool,
    networks: Path,
) -> dict[str, Any]:  # fmt: skip
    model = load(name, networks).double()
    with torch.no_grad():
        known = energy(model(splits.calibration.pixels().double()))
        gamma = threshold_at_tpr(known.numpy(), 0.95)
        x = splits.test.pixels().double()
        logits = model(x)
    labels = splits.test.labels
    assert labels is not None
    accuracy = float((logits.argmax(1) == labels).double().mean())
    fit = (energy(logits) <= gamma) & ((logits.argmax(1) == labels) | (not correct))
    x, labels = x[fit][:samples], labels[fit][:samples]
    classes = labels if correct else None
    # Of the methods that know class margins, crown-ibp is the one that costs nothing beside it.
    attack = certify(
        model, x, gamma, norm=norm, method="crown-ibp", max_radius=MAX_RADIUS[norm],
        labels=classes, lipschitz=False, attack_steps=STEPS, attack_restarts=RESTARTS,
        attack_polish=POLISH,
    ).radius_attack  # fmt: skip
    rows: dict[str, Any] = {}
    print(f"{name}: accuracy {accuracy:.3f}, attack {float(attack.median()):.4g}", flush=True)
    for method in methods:
        start = time.process_time()
        found = certify(
            model, x, gamma, norm=norm, method=method, max_radius=MAX_RADIUS[norm], labels=classes,
            attack=False, lipschitz=False,
        ).radius_certified  # fmt: skip
        near = attack.isfinite()
        rows[method] = {
            "median": float(found.median()),
            "share": float((found / attack)[near].median()),
            "seconds": (time.process_time() - start) / len(x),
            "above_attack": int((found > attack).sum()),
        }
        shown = {k: float(f"{v:.3g}") for k, v in rows[method].items()}
        print(f"{name:>22} {method:>12} {shown}", flush=True)
    return {
        "network": name,
        "norm": norm,
        "accuracy": accuracy,
        "threshold": gamma,
        "samples": len(x),
        "attack_median": float(attack.median()),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--shared", type=Path, default=FOLDER.parent)
    parser.add_argument("--norm", type=float, default=2.0, choices=(2.0, math.inf))
    parser.add_argument("--methods")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--correct", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if unknown := [n for n in given.names if n not in NETWORKS]:
        parser.error(f"expected names of {', '.join(NETWORKS)}, but got {unknown[0]}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    methods = (given.methods or METHODS[given.norm]).split(",")
    read: dict[str, DataSplits] = {}
    results = []
    for name in given.names or NETWORKS:
        data = NETWORKS[name].data
        if data not in read:
            read[data] = images(data, given.shared / "data")
        results.append(
            measure(
                name,
                read[data],
                given.norm,
                methods,
                given.samples,
                given.correct,
                given.shared / "networks",
            )
        )
    if given.json is not None:
        record = {"environment": environment("cpu"), "results": results}
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
