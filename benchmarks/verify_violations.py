"""Certificates by the thousand, each attacked inside its own radius: none may break.

Called by `python benchmarks/verify.py ... --violations N`. A certificate is one sample at one
threshold, on one side, in one norm, by one method. Cells are all of runs x sides x norms x
thresholds; each takes test samples (side id), or samples of every OOD set in turn (side ood), until
its share of N is proven. Attacks have seeds, restarts and steps of their own.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greg_cert.data import DataSplits
from greg_cert.inference import logits_of
from greg_cert.metrics import threshold_at_tpr
from greg_cert.records import RunFolder
from greg_cert.scores import energy
from greg_cert.subjects import common_data
from greg_cert.verify import certify
from greg_cert.verify.attack import AttackPlan, attack_within, smallest_attack
from greg_cert.verify.scorer import Margin, score_function

METHODS = ("crown", "crown-ibp", "lipschitz")
ALPHA = 4  # samples of a cell that the slow methods certify too
TPRS = (0.9, 0.95, 0.99)
NORMS = (2.0, math.inf)
SIDES = ("id", "ood")
CHUNK = 48
STEPS, RESTARTS = 80, 6  # of the attack in each ball
SEED = 1000  # of attacks; certify's own begin at 0


@dataclass(frozen=True)
class Cell:
    """One run, side, norm and threshold, and how many certificates it owes."""

    run: Path
    side: str
    norm: float
    tpr: float
    wanted: int
    seed: int


def cells(runs: Sequence[Path], wanted: int, seed: int) -> list[Cell]:
    """All cells, each with its share of `wanted`."""
    every = list(itertools.product(runs, SIDES, NORMS, TPRS))
    return [Cell(*cell, math.ceil(wanted / len(every)), seed) for cell in every]


def samples(splits: DataSplits, side: str, seed: int) -> tuple[Tensor, list[str]]:
    """All samples of a side in random order, the OOD sets in turn, and what set each is of."""
    generator = torch.Generator().manual_seed(seed)
    sets = {"test": splits.test} if side == "id" else splits.ood
    orders = {n: torch.randperm(len(s), generator=generator) for n, s in sets.items()}
    pixels = {n: s.pixels(orders[n]).double() for n, s in sets.items()}
    turns = [(i, n) for n in sets for i in range(len(orders[n]))]
    turns.sort(key=lambda turn: turn[0])
    return torch.stack([pixels[n][i] for i, n in turns]), [n for _, n in turns]


def check(cell: Cell) -> dict[str, Any]:
    """Certify a cell chunk by chunk and attack everything proven."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run = RunFolder(cell.run)
    model, splits = run.load_model(), common_data([run])
    threshold = threshold_at_tpr(energy(logits_of(model, splits.calibration)), cell.tpr)
    x, names = samples(splits, cell.side, cell.seed)
    score = score_function(model)
    margin = Margin(threshold, cell.side)
    proven: Counter[str] = Counter()
    broken: list[dict[str, Any]] = []
    share: list[float] = []
    for start in range(0, len(x), CHUNK):
        if proven.total() >= cell.wanted:
            break
        chunk, order = x[start : start + CHUNK], torch.arange(start, min(start + CHUNK, len(x)))
        radii = _radii(cell, model, chunk, threshold, alpha=ALPHA if start == 0 else 0)
        plan = AttackPlan(margin, cell.norm, SEED + cell.seed, STEPS, restarts=RESTARTS, polish=40)
        nearest = smallest_attack(score, chunk, 1.0, plan, order).radius
        for k, (method, values) in enumerate(radii.items()):
            rows = (values > 0).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            plan = AttackPlan(margin, cell.norm, SEED + cell.seed + 1 + k, STEPS, restarts=RESTARTS)
            hit, _ = attack_within(score, chunk[rows], values[rows], plan, order[rows])
            hit |= nearest[rows] <= values[rows]
            proven[method] += len(rows)
            share += (values[rows] / nearest[rows]).tolist()  # 0 where no attack was found
            for row in rows[hit].tolist():
                what = {"set": names[start + row], "position": start + row, "method": method}
                broken.append({**what, "radius": float(values[row]), "tpr": cell.tpr})
    where = {"run": run.config.method, "side": cell.side, "norm": str(cell.norm), "tpr": cell.tpr}
    return {**where, "proven": dict(proven), "broken": broken, "closest": max(share, default=0.0)}


def _radii(
    cell: Cell, model: torch.nn.Module, x: Tensor, threshold: float, alpha: int
) -> dict[str, Tensor]:
    """Radii proven by each method; those of slow ones 0 beyond the first `alpha` samples."""
    given: dict[str, Any] = {"side": cell.side, "norm": cell.norm, "attack": False}
    found = certify(model, x, threshold, method=METHODS, **given)
    radii = {
        "crown": torch.as_tensor(found.other["radius_crown"]),
        "crown-ibp": torch.as_tensor(found.other["radius_crown_ibp"]),
        "lipschitz": found.radius_lipschitz,
    }
    if alpha:
        for method in ("alpha-crown", "branch"):
            few = certify(model, x[:alpha], threshold, method=method, lipschitz=False, **given)
            radii[method] = torch.zeros(len(x), dtype=torch.float64)
            radii[method][:alpha] = few.radius_certified
    return radii


def violations(runs: Sequence[Path], wanted: int, processes: int, seed: int) -> dict[str, Any]:
    """Certificates attacked and violated, in all and by cell."""
    begun = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        rows = list(pool.map(check, cells(runs, wanted, seed)))
    by_method: Counter[str] = Counter()
    for row in rows:
        by_method.update(row["proven"])
    return {
        "wanted": wanted,
        "certificates": by_method.total(),
        "by_method": dict(by_method),
        "violations": sum(len(row["broken"]) for row in rows),
        "cells": rows,
        "wall_seconds": time.perf_counter() - begun,
    }


def print_violations(found: dict[str, Any]) -> None:
    """The table."""
    for row in found["cells"]:
        counts = ", ".join(f"{k} {v}" for k, v in row["proven"].items())
        print(
            f"{row['run']:8s}{row['side']:5s}norm {row['norm']:5s}tpr {row['tpr']:<6g}"
            f"{len(row['broken'])} violations of {sum(row['proven'].values())} ({counts}); "
            f"largest radius / attack {row['closest']:.4f}"
        )
        for broken in row["broken"]:
            print(f"  violated: {broken}")
    print(
        f"{found['violations']} violations of {found['certificates']} certificates "
        f"({', '.join(f'{k} {v}' for k, v in found['by_method'].items())}) "
        f"in {found['wall_seconds']:.0f} s"
    )
    if found["certificates"] < found["wanted"]:
        print(f"fewer than the {found['wanted']} asked for: the samples ran out")
