"""What training for the proof gains and costs, over seeds and on test data.

Run: python benchmarks/proof_training.py [CELL …] --work WORK [--train] [--samples 200]
     python benchmarks/proof_training.py --write  # the page from the files that are there

A CELL is DATA-SEED, such as mnist-0; by default all of them in turn. Each trains the runs of
`GRID[DATA]` on one CPU thread, evaluates them, certifies the same test samples under each, attacks
every certificate, and writes docs/results/proof/CELL.json. A cell whose file is there is not done
again. The page is docs/results-proof.md.
WORK keeps run folders and certificates, so an interrupted cell goes on where it was; with `--train`
it stops before the first look at test data.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from page_parts import folder_name, spread, table

from greg_cert.config import load_config
from greg_cert.data import load_data
from greg_cert.evaluation import Evaluator
from greg_cert.files import atomic_path
from greg_cert.report import load_results
from greg_cert.report.tables.comparison import compare
from greg_cert.runs.records import RunFolder, environment
from greg_cert.train import fit
from greg_cert.verify import global_lipschitz_bound, global_lipschitz_radius
from greg_cert.verify.run.runs import verify_runs

ROOT = Path(__file__).parents[1]
CELLS, PAGE = ROOT / "docs" / "results" / "proof", ROOT / "docs" / "results-proof.md"
MARK = "<!-- The tables below are written by benchmarks/proof_training.py. -->"
SEEDS = (0, 1, 2)
BATCH = 25  # samples certified and attacked at once
MAX_RADIUS = 3.0


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        config: file in configs/.
        sets: what differs from it, as `--set` takes it.
    """

    config: str
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The runs on one kind of data.

    Attributes:
        title: of its section.
        runs: by name; the first is the baseline.
        against: names of further baselines.
        samples: at most so many test samples are certified.
    """

    title: str
    runs: dict[str, Run]
    against: tuple[str, ...]
    samples: int


SAME = ("model.name=lip_cnn", "train.stages[0].clip_grad=5", "train.stages[1].clip_grad=5")
FARTHER = ("train.stages[1].lambda_score=0.0011",)  # longer radii, less detection
STRONGER = ("train.lambda_lipschitz=0.03", "train.stages[1].lambda_score=0.0005")
MAXMIN = (  # nearer to the accuracy of energy training
    "model.activation=maxmin",
    "train.lambda_lipschitz=0.05",
    "train.stages[1].lambda_score=0.0005",
)
GRID = {
    "digits": Grid(
        "Digits (8×8, 1,797 images)",
        {
            "energy": Run("digits_energy.yaml"),
            "GReg+": Run("digits_gregplus.yaml"),
            "Lipschitz": Run("digits_lipschitz.yaml"),
            "Lipschitz, MaxMin": Run("digits_lipschitz.yaml", MAXMIN),
        },
        (),
        360,
    ),
    "mnist": Grid(
        "MNIST (28×28, 5,950 training images)",
        {
            "energy": Run("mnist_energy.yaml"),
            "GReg+": Run("mnist_gregplus.yaml"),
            "energy, far margins": Run("mnist_lipschitz.yaml", ("train.lambda_lipschitz=0",)),
            "Lipschitz": Run("mnist_lipschitz.yaml"),
            "Lipschitz, stronger": Run("mnist_lipschitz.yaml", STRONGER),
        },
        ("energy, far margins",),
        150,
    ),
    "cifar10small": Grid(
        "CIFAR-10 (32×32, 5,100 training images)",
        {
            "energy": Run("cifar10small_energy.yaml"),
            "energy, lip_cnn": Run("cifar10small_energy.yaml", SAME),
            "Lipschitz": Run("cifar10small_lipschitz.yaml"),
            "Lipschitz, farther": Run("cifar10small_lipschitz.yaml", FARTHER),
        },
        ("energy, lip_cnn",),
        100,
    ),
}


def trained(data: str, seed: int, work: Path) -> dict[str, tuple[RunFolder, float]]:
    """Runs of a cell by name, each with the CPU seconds of its training."""
    found: dict[str, tuple[RunFolder, float]] = {}
    splits = None
    for name, run in GRID[data].runs.items():
        folder = work / f"{data}-{seed}" / folder_name(name)
        note = folder.with_suffix(".seconds.json")
        if not note.exists():
            config = load_config(
                ROOT / "configs" / run.config, (*run.sets, f"seed={seed}", f'name="{name}"')
            )
            splits = splits or load_data(config.data)
            start = time.process_time()
            fit(config, splits, folder, resume=folder.exists())
            # Of a run that was interrupted, only its last part; the median over seeds is shown.
            note.write_text(json.dumps(time.process_time() - start), encoding="utf-8")
            print(f"{data}-{seed}: trained {name}", flush=True)
        found[name] = RunFolder(folder), float(json.loads(note.read_text(encoding="utf-8")))
    return found


def measured(run: RunFolder, evaluator: Evaluator, seconds: float) -> dict[str, Any]:
    """What a run is worth before anything of a sample is certified."""
    config, predicted, detection = run.config, evaluator.predictions, evaluator.detection()
    return {
        "model": config.model.name,
        "activation": config.model.activation,
        "stages": run.manifest["stages"],
        "accuracy": predicted.accuracy,
        "ece": predicted.calibration_error,
        "ood": {
            name: {"auroc": m["auroc"], "fpr95": m["fpr95"]} for name, m in detection.sets.items()
        },
        "train_seconds": round(seconds, 1),
    }


def cell(data: str, seed: int, work: Path, samples: int | None) -> dict[str, Any]:
    """Everything of one kind of data and one seed."""
    grid = GRID[data]
    runs = trained(data, seed, work)
    first, *others = [run for run, _ in runs.values()]
    n = min(samples or grid.samples, grid.samples)
    settings = first.config.verify.model_copy(
        update={
            "method": "sdp-crown",
            "samples": n,
            "max_radius": MAX_RADIUS,
            "batch": BATCH,
        }
    )
    out = work / f"{data}-{seed}" / "verify"
    done = verify_runs(others, settings, out, baseline=first)
    results = load_results(out)
    splits = load_data(first.config.data)  # of all runs
    numbers = {}
    for name, (run, seconds) in runs.items():
        evaluator, summary = Evaluator(run.path, splits), results.summary.runs[name]
        found = measured(run, evaluator, seconds)
        model = evaluator.model.eval().double()  # only now: scores are those of its own type
        frame = results.of(name)
        certified, attack = (
            results.column(name, column) for column in ("radius_certified", "radius_attack")
        )
        kept = results.kept(name)
        radius = global_lipschitz_radius(
            model,
            splits.test.pixels(frame["index"].tolist()).double(),
            summary.threshold,
            max_radius=MAX_RADIUS,
        )
        numbers[name] = found | {
            "constant": global_lipschitz_bound(
                model, splits.test.image_shape, score=run.config.score
            ),
            "samples": len(frame),
            "accepted": int(kept.sum()),
            "certified": float(median(certified)),
            "attack": float(median(attack)),
            "lipschitz": float(radius.quantile(0.5)),
            "share": float(median((certified / attack)[kept])),
            "shares_above_0.9": int((certified / attack > 0.9)[kept].sum()),
            "violations": summary.violations,
            "verify_seconds": summary.seconds,
            "radii": [
                [int(i), round(float(c), 5), round(float(a), 5)]
                for i, c, a in zip(frame["index"], certified, attack, strict=True)
            ],
        }
    comparisons = []
    for baseline in (first.config.title, *grid.against):
        against = results.summary.model_copy(update={"baseline": baseline})
        comparisons += [
            asdict(found)
            for found in compare(replace(results, summary=against))
            if found.main and found.run not in grid.against
        ]
    return {
        "cell": f"{data}-{seed}",
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "violations": done.violations,
        "runs": numbers,
        "comparisons": comparisons,
        **environment("cpu, one thread"),
        "configs": {name: asdict(run) for name, run in grid.runs.items()},
    }


def section(data: str, cells: list[dict[str, Any]]) -> list[str]:
    """Markdown of one kind of data."""
    grid = GRID[data]
    seeds = ", ".join(str(c["seed"]) for c in cells)
    commits = sorted({str(c["git_commit"])[:7] for c in cells})
    versions = sorted({c["versions"]["torch"] for c in cells})
    n = cells[0]["runs"][next(iter(grid.runs))]["samples"]
    lines = [
        f"## {grid.title}",
        "",
        f"Seeds {seeds}; {n} test samples certified a run (ℓ2, `sdp-crown`, radii up to "
        f"{MAX_RADIUS:g}); {sum(c['violations'] for c in cells)} certificates contradicted; "
        f"torch {', '.join(versions)}, one CPU thread; commits {', '.join(commits)}.",
        "",
    ]
    heads = ["run", "accuracy", "ECE", "AUROC, mean of sets", "FPR95, mean of sets"]
    heads += ["certified (proof)", "attack (upper bound)", "share", "(γ − S)/L̄ (proof)", "L̄"]
    figures = []
    for name in grid.runs:
        rows = [c["runs"][name] for c in cells]

        def over(key: str, digits: int, rows: list[Any] = rows) -> str:
            return spread([row[key] for row in rows], digits)

        def ood(key: str, rows: list[Any] = rows) -> str:
            return spread([mean(m[key] for m in row["ood"].values()) for row in rows], 3)

        seconds = median(row["train_seconds"] for row in rows)
        figures.append(
            [
                *(name, over("accuracy", 3), over("ece", 3), ood("auroc"), ood("fpr95")),
                *(over("certified", 3), over("attack", 3), over("share", 2)),
                *(over("lipschitz", 3), over("constant", 1), f"{seconds:.0f}"),
            ]
        )
    lines += [*table([*heads, "training, CPU s"], figures), "", "AUROC of each OOD set:", ""]
    sets = list(cells[0]["runs"][next(iter(grid.runs))]["ood"])
    by_set = []
    for name in grid.runs:
        found = [
            spread([c["runs"][name]["ood"][s]["auroc"] for c in cells], 3).replace(" ± 0.000", "")
            for s in sets
        ]
        by_set.append([name, *found])
    lines += [
        *table(["run", *sets], by_set),
        "",
        "Ratios of median certified radii, over all certified samples, those that γ rejects as 0 "
        "(95 % paired bootstrap interval of each seed):",
        "",
    ]
    ratios = []
    first = next(iter(grid.runs))
    for one in cells[0]["comparisons"]:
        penalised = grid.runs[one["run"]].config.endswith("_lipschitz.yaml")
        if one["baseline"] != first and not penalised:
            continue
        same = [
            found
            for c in cells
            for found in c["comparisons"]
            if (found["run"], found["baseline"]) == (one["run"], one["baseline"])
        ]
        each = [f"{f['ratio']:.2f} ({f['low']:.2f} to {f['high']:.2f})" for f in same]
        ratios.append([one["run"], one["baseline"], *each, spread([f["ratio"] for f in same], 2)])
    heads = ["run", "against", *(f"seed {c['seed']}" for c in cells), "mean"]
    return [*lines, *table(heads, ratios), ""]


def write_page() -> None:
    """Write the tables of docs/results-proof.md below its mark, from the cells that are there."""
    before = PAGE.read_text(encoding="utf-8").partition(MARK)[0] if PAGE.exists() else ""
    lines = [MARK, ""]
    for data in GRID:
        files = [CELLS / f"{data}-{seed}.json" for seed in SEEDS]
        cells = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()]
        if cells:
            lines += section(data, cells)
    with atomic_path(PAGE) as path:
        path.write_text(before + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    names = [f"{data}-{seed}" for seed in SEEDS for data in GRID]
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(names))
    parser.add_argument("--work", type=Path, help="folder of runs and certificates")
    parser.add_argument("--samples", type=int, help="certify fewer than the grid says")
    parser.add_argument("--train", action="store_true", help="train and no more")
    parser.add_argument("--write", action="store_true", help="write the page and no more")
    given = parser.parse_args()
    if unknown := sorted(set(given.cells) - set(names)):
        parser.error(f"expected cells of {', '.join(names)}, but got {', '.join(unknown)}")
    if given.work is None and not given.write:
        parser.error("expected --work or --write")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in () if given.write else given.cells or names:
        data, _, seed = name.partition("-")
        file = CELLS / f"{name}.json"
        if file.exists():
            continue
        if given.train:
            trained(data, int(seed), given.work)
            continue
        found = cell(data, int(seed), given.work, given.samples)
        CELLS.mkdir(exist_ok=True)
        with atomic_path(file) as path:
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: done", flush=True)
    write_page()


if __name__ == "__main__":
    main()
