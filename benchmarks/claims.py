"""The paper's claims on real images: a grid of methods, trained, evaluated and certified.

Run: python benchmarks/claims.py [TASK …] --work WORK [--runs RUN …] [--seeds 0 1 2] [--choose]
     python benchmarks/claims.py --write      # docs/results.md from the files that are there

A TASK is a key of `grid.tasks.TASKS`, by default all; a RUN a key of `grid.tasks.RUNS`. For each
task the weights λ are chosen first, on calibration data (`grid.choose`), and written to
docs/results/TASK/chosen.json, or taken from another task; with `--choose` that is all, and what
defaults are judged by is tried, too. Then each
run and seed is a cell: trained, evaluated, certified and attacked (`grid.cell`), and written to
docs/results/TASK/RUN-SEED.json; with `--detectors` the runs of `grid.on_top` are scored by
post-hoc detectors, too, as docs/results/TASK/detectors/RUN-SEED.json. What is there is not done
again, and WORK keeps run folders and certificates, so that an interrupted cell goes on where it
was. All of it runs on one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from grid import on_top
from grid.cell import measured, task_data, trained
from grid.choose import Chooser
from grid.page import file_name, write_page
from grid.tasks import EXTRA, ROOT, RUNS, SEEDS, TASKS, make_digit_splits

from greg_cert.files import write_atomic

RESULTS = ROOT / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--work", type=Path, help="folder of runs and certificates")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--choose", action="store_true", help="choose the weights and no more")
    parser.add_argument(
        "--detectors", action="store_true", help="post-hoc detectors on top of some runs, too"
    )
    parser.add_argument("--write", action="store_true", help="write the page and no more")
    given = parser.parse_args()
    for names, known in ((given.tasks, TASKS), (given.runs, RUNS)):
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"expected some of {', '.join(known)}, but got {', '.join(unknown)}")
    if given.work is None and not given.write:
        parser.error("expected --work or --write")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not given.write:
        for task in given.tasks or TASKS:
            cells(task, given)
    write_page(RESULTS, ROOT / "docs" / "results.md")


def cells(task: str, given: argparse.Namespace) -> None:
    """Choose the weights of a task, then fill its cells."""
    work = given.work.resolve()
    make_digit_splits(work)
    folder, of = RESULTS / task, TASKS[task].weights or task
    chooser = Chooser(TASKS[of], work / f"{of}-choose", RESULTS / of / "chosen.json")
    runs = [run for run in TASKS[task].runs if run in given.runs]
    chosen = chooser([*runs, *EXTRA] if given.choose else runs)
    for seed in () if given.choose else given.seeds:
        for run in runs:
            file = folder / file_name(run, seed)
            if file.exists():
                continue
            write(file, measured(task, run, chosen[run]["chosen"], seed, work))
            print(f"{task} {run} {seed}: done", flush=True)
        for run in (run for run in runs if run in on_top.RUNS):
            file = folder / "detectors" / file_name(run, seed)
            if given.detectors and not file.exists():
                done = trained(task, run, chosen[run]["chosen"], seed, work)
                write(file, on_top.detectors(done, task_data(task, work)))


def write(file: Path, found: dict[str, Any]) -> None:
    """One cell, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
