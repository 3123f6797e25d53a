"""`greg-cert demo`: train, verify, compare and report on data that needs no download."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen

CONFIGS = ("digits_energy.yaml", "digits_gregplus.yaml", "digits_lipschitz.yaml")


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for everything; greg-cert-demo, or greg-cert-toy for --toy."),
    ] = None,
    toy: Annotated[
        bool,
        typer.Option("--toy", help="Points in a plane instead: one picture, in half a minute."),
    ] = False,
    set_: screen.Set = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Train energy, GReg+ and a Lipschitz penalty on bundled digits, certify and compare them.

    Needs no network; minutes on two CPU cores. With --toy, trains on points in a plane with the
    gradient penalty and without, and draws the score and its slope everywhere.

    Example: greg-cert demo --out greg-cert-demo

    Example: greg-cert demo --set train.epochs=2 --set verify.samples=40   # a quick look
    """
    screen.speak(json=json, quiet=quiet)
    import torch

    from greg_cert.cli.toy import demonstrate
    from greg_cert.cli.verify import verify_and_report
    from greg_cert.config import load_config
    from greg_cert.data import load_data
    from greg_cert.errors import UsageError
    from greg_cert.files import file_name, is_vacant
    from greg_cert.train import fit

    out = out or Path("greg-cert-toy" if toy else "greg-cert-demo")
    if not is_vacant(out):
        raise UsageError(
            f"--out: expected a new or empty folder, but {out} has content; name another with --out"
        )
    # These networks are small: a second thread gains 12 % and costs minutes where the machine is
    # busy; and sums that are split by thread would differ from machine to machine.
    torch.set_num_threads(1)
    if toy:
        if set_:
            raise UsageError("--set: expected no settings beside --toy, which has no configuration")
        demonstrate(out)
        return
    runs = []
    for name in CONFIGS:
        with as_file(files("greg_cert.configs") / name) as path:
            config = load_config(path, set_ or ())
        folder = out / "runs" / file_name(config.title)
        with screen.waiting("read the data"):
            splits = load_data(config.data)
        with screen.training_bars() as bar:
            watch = bar(f"train {config.title}")
            runs.append(fit(config, splits, folder, observer=watch, command=screen.command_line()))
    verify_and_report(runs[1:], runs[0].config.verify, out / "verify", baseline=runs[0])
    screen.plain(*(f"run:     {run.path}" for run in runs))
