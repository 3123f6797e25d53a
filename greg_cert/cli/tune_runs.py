"""The runs of `greg-cert tune`: trained and measured one by one, and what is written of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greg_cert.cli import screen
from greg_cert.files import file_name

if TYPE_CHECKING:
    from greg_cert.config import ExperimentConfig, VerifyConfig
    from greg_cert.config.tuned import Tuned
    from greg_cert.data import DataSplits, Images
    from greg_cert.report.tables.sheets import Sheet
    from greg_cert.runs.records import RunFolder
    from greg_cert.runs.tuned_runs import TunedRun

MOST_HELD_OUT = 2000
_NOTE = "tuning.json"  # in a run folder: what it took, and what was measured


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    tuned: Tuned
    setting: str  # as it was typed
    seeds: int  # trainings of each value
    settings: VerifyConfig  # how calibration samples are certified
    held_out: float  # share of the auxiliary set that stands for OOD data
    out: Path  # folder of runs and results
    resume: bool
    command: str

    def runs(self) -> Iterator[tuple[str, ExperimentConfig, Path]]:
        """Value, experiment and run folder of each run."""
        for value, config in self.tuned.configs.items():
            for k in range(self.seeds):
                seed = config.seed + k
                name = file_name(value) + (f"-seed{seed}" if self.seeds > 1 else "")
                yield value, config.model_copy(update={"seed": seed}), self.out / "runs" / name


def measured_runs(plan: Plan) -> list[TunedRun]:
    """Train and measure every run, or read what an earlier call left.

    Raises:
        UsageError: for a folder that is in use, values that one folder would serve, a method that
            proves nothing, or training by several processes.
        RunError: as `greg_cert.train.fit`.
        DataError: as `greg_cert.data.load_data`.
    """
    from greg_cert.certificates.methods import PROOFS, chosen_methods
    from greg_cert.data import load_data
    from greg_cert.data.withheld import hold_out
    from greg_cert.errors import UsageError
    from greg_cert.files import is_vacant

    if not set(chosen_methods(plan.settings.method)) & set(PROOFS):
        raise UsageError(
            f"--method: expected a proof among {', '.join(PROOFS)}, but got {plan.settings.method}"
        )
    for _, config, _ in plan.runs():
        for name in ("devices", "nodes"):
            if (found := getattr(config.train, name)) != 1:
                raise UsageError(
                    f"train.{name}: expected 1, as tune is one process, but got {found}; "
                    f"--set train.{name}=1"
                )
    folders = [folder for *_, folder in plan.runs()]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UsageError(
            f"--values: expected values that differ in letters and digits, but {twice[0]} would "
            "serve two of them"
        )
    if plan.resume and is_vacant(plan.out):
        screen.note(f"--resume: nothing is in {plan.out} yet, so the first run begins")
    elif not plan.resume and not is_vacant(plan.out):
        raise UsageError(
            f"--out: expected a new or empty folder, but {plan.out} has content; name another, or "
            "go on with --resume"
        )
    data = next(plan.runs())[1].data
    with screen.waiting("read the data"):
        splits, held_out = load_data(data, tests=False), None
    if plan.held_out and splits.aux is not None:
        kept, held_out = hold_out(splits.aux, plan.held_out, most=MOST_HELD_OUT, seed=data.seed)
        splits = replace(splits, aux=kept)
    return [_measured(plan, splits, held_out, *one) for one in plan.runs()]


def _measured(
    plan: Plan,
    splits: DataSplits,
    held_out: Images | None,
    value: str,
    config: ExperimentConfig,
    folder: Path,
) -> TunedRun:
    from greg_cert.errors import DataError, GregCertError, RunError
    from greg_cert.runs.tuned_runs import TunedRun

    title = f"{value} (seed {config.seed})" if plan.seeds > 1 else value
    numbers: dict[str, float | None] = {}
    try:
        run, numbers["train_cpu_seconds"] = _trained(plan, splits, title, config, folder)
        found, error = _measure(plan, splits, held_out, title, run, numbers["train_cpu_seconds"])
    except (RunError, DataError):  # about folders and files: the next value would meet them too
        raise
    except GregCertError as failed:
        return TunedRun(value, config.seed, numbers, str(failed))
    return TunedRun(value, config.seed, {**numbers, **found}, error)


def _trained(
    plan: Plan, splits: DataSplits, title: str, config: ExperimentConfig, folder: Path
) -> tuple[RunFolder, float | None]:
    """The complete run, and the CPU seconds of its training where one call did all of it."""
    from greg_cert.runs.records import RunFolder
    from greg_cert.train import check, fit

    known, begun = _read_note(folder), RunFolder(folder).config_file.exists()
    # Which also imports what training needs, so that no run is charged for it.
    with screen.waiting(f"prepare {title}"):
        check(config, splits)
    start = time.process_time()
    with screen.training_bars() as bar:
        watch = bar(f"train {title}")
        run = fit(config, splits, folder, resume=plan.resume, observer=watch, command=plan.command)
    if begun:
        return run, known.get("train_cpu_seconds")
    seconds = time.process_time() - start
    _write_note(folder, {"train_cpu_seconds": seconds})
    return run, seconds


def _measure(
    plan: Plan,
    splits: DataSplits,
    held_out: Images | None,
    title: str,
    run: RunFolder,
    train_seconds: float | None,
) -> tuple[dict[str, float | None], str | None]:
    """Numbers of a run on calibration data, from its folder where they are of the same kind."""
    from greg_cert.devices import find_device
    from greg_cert.runs.records import package_versions
    from greg_cert.verify.run.on_calibration import measure

    versions = package_versions()
    identity = {
        "weights": run.weights_digest,
        "settings": plan.settings.model_dump(mode="json", exclude={"batch", "memory", "device"}),
        "held_out": None if held_out is None else held_out.fingerprint(),
        "versions": {name: versions.get(name) for name in ("greg-cert", "torch")},
    }
    if (note := _read_note(run.path)).get("identity") == identity:
        return note["numbers"], note["error"]
    with screen.bar(f"measure {title}") as tell:
        found = measure(
            run.load_model().to(find_device(plan.settings.device)),
            splits,
            held_out,
            plan.settings,
            score=run.config.score,
            progress=lambda done, of: tell(done, of, f"{done}/{of} samples"),
        )
    note = {"train_cpu_seconds": train_seconds, "identity": identity, **asdict(found)}
    _write_note(run.path, note)
    return found.numbers, found.error


def _read_note(folder: Path) -> dict[str, Any]:
    """What an earlier call wrote into a run folder; empty where it wrote nothing.

    Raises:
        RunError: where the file is not as it was written.
    """
    from greg_cert.digests import check_seal
    from greg_cert.errors import RunError
    from greg_cert.files import read_json

    path = folder / _NOTE
    try:
        found: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: expected what tune wrote, but got: {error}") from error
    check_seal(found, path)
    return found


def _write_note(folder: Path, note: Mapping[str, object]) -> None:
    from greg_cert.digests import sealed
    from greg_cert.errors import RunError
    from greg_cert.files import write_atomic

    try:
        write_atomic(folder / _NOTE, json.dumps(sealed(note), indent=2) + "\n")
    except OSError as error:
        raise RunError(f"out: cannot write {folder / _NOTE}: {error}") from error


def write_tuning(plan: Plan, runs: Sequence[TunedRun]) -> tuple[list[Path], Sheet, dict[str, Any]]:
    """Write `tune.json`, `tune.csv`, `tune.md`, `tradeoff.png` and `tradeoff.pdf`.

    Returns:
        The files, the table, and what `tune.json` says.

    Raises:
        UsageError: where they cannot be written.
    """
    from greg_cert.devices import device_title, find_device
    from greg_cert.files import write_files
    from greg_cert.report.figures.render import render
    from greg_cert.report.figures.tradeoff import TRADEOFF_STYLE, draw_tradeoff
    from greg_cert.report.tables.forms import markdown_sheet
    from greg_cert.report.tables.tradeoff import tradeoff_csv, tradeoff_sheet
    from greg_cert.runs.records import environment
    from greg_cert.runs.tuned_runs import NUMBERS, over_seeds

    values, settings = over_seeds(runs), plan.settings
    about = {"norm": settings.norm_value, "tpr": settings.tpr}
    sheet = tradeoff_sheet(plan.setting, values, max_radius=settings.max_radius, **about)
    picture = render(
        lambda style: draw_tradeoff(plan.setting, values, style=style, **about), TRADEOFF_STYLE
    )
    folders = [folder for *_, folder in plan.runs()]
    record: dict[str, Any] = screen.strict(
        {
            "schema": 1,
            "setting": plan.setting,
            "keys": list(plan.tuned.keys),
            "rows": [
                {
                    **{"value": run.value, "seed": run.seed, "run": str(folder)},
                    **{name: run.numbers.get(name) for name in NUMBERS},
                    "error": run.error,
                }
                for run, folder in zip(runs, folders, strict=True)
            ],
            "values": [asdict(value) for value in values],
            "settings": {
                **{"seeds": plan.seeds, "held_out": plan.held_out},
                "verify": settings.model_dump(mode="json"),
                "configs": {
                    value: config.model_dump(mode="json")
                    for value, config in plan.tuned.configs.items()
                },
            },
            "environment": environment(device_title(find_device(settings.device))),
            "command": plan.command,
        }
    )
    contents: dict[str, bytes | str] = {
        "tune.json": json.dumps(record, indent=2, allow_nan=False) + "\n",
        "tune.csv": tradeoff_csv(plan.setting, runs),
        "tune.md": markdown_sheet(sheet, sheet.title) + "\n",
        "tradeoff.png": picture.png,
        "tradeoff.pdf": picture.pdf,
    }
    return write_files(plan.out, contents), sheet, record
