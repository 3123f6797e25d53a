"""docs/results.md from the cells: tables, and what they say of each claim."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from page_parts import folder_name, table

from greg_cert.files import write_atomic
from grid.on_top import RUNS as ON_TOP
from grid.on_top_page import best_detectors, detector_tables
from grid.settled import Cells, settled
from grid.tasks import EXTRA, RUNS, SEEDS, TASKS
from grid.verdicts import (
    Cell,
    Measure,
    exceeds,
    groups_of,
    mean_of_sets,
    median_radius,
    over_seeds,
    share,
    slope,
)

MARK = "<!-- The tables below are written by benchmarks/claims.py. -->"


def write_page(results: Path, page: Path) -> None:
    """Write the tables of the page below its mark."""
    before = page.read_text(encoding="utf-8").partition(MARK)[0] if page.exists() else ""
    known = {task: cells for task in TASKS if (cells := read_cells(results / task, task))}
    on_top = {task: read_cells(results / task / "detectors", task) for task in known}
    main = [task for task in known if TASKS[task].short]
    lines = [MARK, "", *overview(*({task: of[task] for task in main} for of in (known, on_top)))]
    for task, cells in known.items():
        weights = results / (TASKS[task].weights or task) / "chosen.json"
        lines += section(task, cells, json.loads(weights.read_text(encoding="utf-8")))
        lines += detector_tables(on_top[task])
    write_atomic(page, before + "\n".join(lines).rstrip() + "\n")


def overview(known: Mapping[str, Cells], on_top: Mapping[str, Cells]) -> list[str]:
    """Each claim's verdict in each task."""
    told: dict[tuple[str, str], dict[str, dict[str, list[str]]]] = {}
    for task, cells in known.items():
        for line in settled(cells):
            of_task = told.setdefault((line.claim, line.runs), {}).setdefault(task, {})
            short = re.sub(r" \[.*\]", "", line.found)  # without the interval
            of_task.setdefault(line.verdict, []).append(f"{line.what} {short}")
    rows = [
        [claim, runs, *(_said(by_task.get(task, {})) for task in known)]
        for (claim, runs), by_task in told.items()
    ]
    for run in ON_TOP:
        best = [best_detectors(of[run]) if run in of else "" for of in on_top.values()]
        if any(best):
            rows.append(["g: post-hoc detectors detect better", f"on {run}", *best])
    heads = ["claim", "runs", *(TASKS[task].short for task in known)]
    return ["## Verdicts", "", "From the tables below:", "", *table(heads, rows), ""]


def _said(by_verdict: Mapping[str, Sequence[str]]) -> str:
    """What each verdict is of."""
    return "; ".join(f"**{word}**: {', '.join(of)}" for word, of in by_verdict.items())


def read_cells(folder: Path, task: str) -> dict[str, dict[int, Cell]]:
    """The cells of a task that are there."""
    found: dict[str, dict[int, Cell]] = {}
    for run in TASKS[task].runs:
        for seed in SEEDS:
            file = folder / file_name(run, seed)
            if file.exists():
                found.setdefault(run, {})[seed] = json.loads(file.read_text(encoding="utf-8"))
    return found


def file_name(run: str, seed: int) -> str:
    """Of a cell."""
    return f"{folder_name(run)}-{seed}.json"


def section(task: str, cells: Cells, chosen: Mapping[str, Any]) -> list[str]:
    """Everything of one task."""
    one = next(iter(next(iter(cells.values())).values()))
    every = [cell for of_run in cells.values() for cell in of_run.values()]
    commits = sorted({str(cell["git_commit"])[:7] for cell in every})
    versions = sorted({cell["versions"]["torch"] for cell in every})
    seeds = sorted({seed for of_run in cells.values() for seed in of_run})
    lines = [
        f"## {TASKS[task].title}",
        "",
        f"Network `{one['model']['name']}`; seeds {', '.join(map(str, seeds))}; "
        f"torch {', '.join(versions)}, one CPU thread; commits {', '.join(commits)}.",
        "",
        *chosen_table(task, cells, chosen),
        *([] if TASKS[task].weights else candidate_table(chosen)),
        *detection_table(cells),
    ]
    if "radii" in one:
        lines += [*radius_table(cells, one), *auc_table(cells, one)]
    claims = [
        (line.claim, line.runs, f"{line.what}: {line.found}", line.verdict)
        for line in settled(cells)
    ]
    heads = ("claim", "runs", "found [95 % interval]", "verdict")
    return [*lines, "Claims:", "", *table(heads, claims), ""]


def chosen_table(task: str, cells: Cells, chosen: Mapping[str, Any]) -> list[str]:
    """The weights, and among which they were chosen."""
    rows = []
    for run in cells:
        if RUNS[run].tries:
            tried = "; ".join(
                f"{key} {', '.join(f'{v:g}' for v in values)}"
                for key, values in RUNS[run].tries.items()
            )
            taken = ", ".join(f"{k} {v:g}" for k, v in chosen[run]["chosen"].items())
            rows.append((run, taken, tried))
    whose = TASKS[task].weights
    return [
        f"Weights{f', those of {whose}' if whose else ''}:",
        "",
        *table(("run", "chosen", "among"), rows),
        "",
    ]


def candidate_table(chosen: Mapping[str, Any]) -> list[str]:
    """What each of the values tried gave on calibration data."""
    columns = ("accuracy", "calibration_error", "auroc", "fpr")
    radii = ("radius_certified", "radius_attack")
    rows = []
    for run, found in chosen.items():
        for candidate in found["candidates"]:
            values, failed = candidate["values"], candidate.get("error")
            what = ", ".join(f"{k} {v:g}" for k, v in values.items())
            if failed is None:
                numbers = [f"{candidate[c]:.3f}" for c in (*columns, *radii)]
            else:
                numbers = ["failed", *["–"] * (len(columns) + len(radii) - 1)]
            taken = len(found["candidates"]) > 1 and values == found["chosen"] and run not in EXTRA
            rows.append([run, f"**{what}**" if taken else what, *numbers])
    heads = ("run", "values", "accuracy", "ECE", "AUROC", "FPR95", "certified", "attack")
    return [
        "All that was tried, one seed, on **calibration data** and held-out auxiliary images "
        "(those that were taken in bold; the last runs were tried for defaults alone):",
        "",
        *table(heads, rows),
        "",
    ]


def detection_table(cells: Cells) -> list[str]:
    """Accuracy, calibration, detection and slopes."""
    one = next(iter(next(iter(cells.values())).values()))
    groups = groups_of(one)
    heads = ["run", "accuracy", "ECE"]
    heads += [f"{m}, {g}" for g in groups for m in ("AUROC", "FPR95")]
    heads += ["‖∇S‖, ID", "‖∇S‖, OOD", "training, CPU s"]
    rows = []
    for run, of_run in cells.items():
        row = [run]
        row += [over_seeds(of_run, lambda c, k=k: c[k], 3) for k in ("accuracy", "ece")]  # type: ignore[misc]
        row += [
            over_seeds(of_run, mean_of_sets(m, g), 3) for g in groups for m in ("auroc", "fpr95")
        ]
        row += [over_seeds(of_run, slope(of), 3) for of in ("id", "ood")]
        seconds = [c["train_seconds"] for c in of_run.values() if c["train_seconds"] is not None]
        rows.append([*row, f"{mean(seconds):.0f}" if seconds else "–"])
    sets = list(one["ood"])
    by_set = [
        [run, *(over_seeds(of_run, lambda c, s=s: c["ood"][s]["auroc"], 3) for s in sets)]  # type: ignore[misc]
        for run, of_run in cells.items()
    ]
    near = ", ".join(name for name, g in one["groups"].items() if g == "near") or "none"
    return [
        f"Detection on test data (near OOD: {near}); slopes are medians, the mean over OOD sets; "
        "training is that of the last stage where the first is shared:",
        "",
        *table(heads, rows),
        "",
        "AUROC of each OOD set:",
        "",
        *table(("run", *sets), by_set),
        "",
    ]


def radius_table(cells: Cells, one: Cell) -> list[str]:
    """Certified and attacked radii in both norms."""
    heads = ["run"]
    for name in ("ℓ2", "ℓ∞"):
        heads += [f"{name} {k}" for k in ("certified", "attack", "share", "estimate > attack")]
    heads.append("L̄")
    rows = []
    for run, of_run in cells.items():
        row = [run]
        for norm, digits in (("2", 3), ("inf", 4)):
            row += [
                over_seeds(of_run, median_radius(norm, f"radius_{k}"), digits)
                for k in ("certified", "attack")
            ]
            row += [over_seeds(of_run, share(norm), 2), over_seeds(of_run, exceeds(norm), 2)]
        rows.append([*row, over_seeds(of_run, lambda c: c["lipschitz"], 1)])
    every = [cell for of_run in cells.values() for cell in of_run.values()]
    wrong = sum(r["violations"] for cell in every for r in cell["radii"].values())
    how = "; ".join(proven(cells, norm) for norm in one["radii"])
    n = len(one["radii"]["2"]["rows"])
    return [
        f"Radii of {n} test samples ({how}); medians over all, those that γ rejects as 0. "
        "*Certified* is a proof, *attack* an upper bound, *share* the median of one over the "
        "other where γ accepts; *estimate* is (γ − S)/‖∇S‖, with how often it exceeds "
        f"the attack. {wrong} certificates contradicted.",
        "",
        *table(heads, rows),
        "",
    ]


def proven(cells: Cells, norm: str) -> str:
    """By which methods the radii of a norm are proven, those of the fewest runs by name."""
    by: dict[str, list[str]] = {}
    for run, of_run in cells.items():
        settings = next(iter(of_run.values()))["radii"][norm]["settings"]
        by.setdefault(" and ".join(settings["method"]), []).append(run)
    (usual, _), *others = sorted(by.items(), key=lambda pair: -len(pair[1]))
    words = [usual, *(f"{' and '.join(runs)} by {method}" for method, runs in others)]
    name = "ℓ2" if norm == "2" else "ℓ∞"
    return f"{name} by {', '.join(words)}, up to {settings['max_radius']:g}"


def auc_table(cells: Cells, one: Cell) -> list[str]:
    """AUROC under perturbation of OOD samples."""
    sizes = list(next(iter(one["auc"].values())))

    def value(radius: str, place: int) -> Measure:
        return lambda cell: mean(of_set[radius][place] for of_set in cell["auc"].values())

    rows = [
        [run, *(over_seeds(of_run, value(r, place), 3) for r in sizes for place in (0, 1))]
        for run, of_run in cells.items()
    ]
    heads = [f"{name}, {r}" for r in sizes for name in ("GAUC (proof)", "AAUC (attack)")]
    return [
        "AUROC where each OOD sample is moved in the worst way within an ℓ2 ball, mean of sets:",
        "",
        *table(("run", *heads), rows),
        "",
    ]
