"""`greg-cert train`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What tables, figures and files call the run: `name`.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    set_: screen.Set = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Train a model and leave a run folder.

    Several processes: torchrun --nproc-per-node 2 -m greg_cert train CONFIG, with train.devices
    set to as many.

    Example: greg-cert train configs/digits_gregplus.yaml --name "GReg+" --out runs/greg+

    Example: greg-cert train experiment.yaml --set train.stages[1].method=greg+ --out runs/greg+

    Example: greg-cert train experiment.yaml --set seed=1 --set train.epochs=5 --out runs/seed1
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.config import load_config
    from greg_cert.data import load_data
    from greg_cert.files import file_name, is_vacant
    from greg_cert.train import fit

    named = [] if name is None else [f"name={dumps(name, ensure_ascii=False)}"]
    experiment = load_config(config, [*(set_ or ()), *named])
    folder = out or Path("runs") / file_name(experiment.title)
    if resume and is_vacant(folder):
        screen.note(f"--resume: there is no run in {folder} yet, so one begins")
    with screen.waiting("read the data"):
        splits = load_data(experiment.data)
    with screen.training_bars() as bar:
        watch, command = bar(experiment.title), screen.command_line()
        run = fit(experiment, splits, folder, resume=resume, observer=watch, command=command)
    if loaded := run.manifest.get("init"):
        screen.plain(f"init: {loaded['summary']}")
    screen.plain(f"run: {run.path}")
    screen.record({"schema": 1, "run": run.path, "manifest": run.manifest})
