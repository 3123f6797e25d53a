"""`greg-cert tune`: one setting at several values, compared without a look at test data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from greg_cert.cli import screen
from greg_cert.cli.settings import verify_settings

if TYPE_CHECKING:
    from rich.table import Table

    from greg_cert.report.tables.sheets import Sheet


def tune(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    for_: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="SETTING",
            help="A setting of a stage by its name, set in every stage of the file that sets it, "
            "else in the last; or a path as of --set, such as model.activation.",
        ),
    ],
    values: Annotated[
        str, typer.Option(metavar="A,B,...", help="Its values, each as --set reads it.")
    ],
    seeds: Annotated[
        int, typer.Option(help="Trainings of each value: seed, seed + 1, ...", min=1)
    ] = 1,
    samples: Annotated[
        int, typer.Option(help="Calibration samples certified a run; 0 for all.", min=0)
    ] = 50,
    method: Annotated[
        str | None, typer.Option(help="As of verify; that of the file by default.")
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            help="Share of the auxiliary set, 2,000 images at most, that is kept out of training "
            "and stands for OOD data; 0 for none."
        ),
    ] = 0.1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and results; tune/NAME by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped call.")] = False,
    device: screen.Device = None,
    set_: screen.Set = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Train at several values of one setting and show what each costs and gains.

    Accuracy, AUROC, FPR95 and calibration error against certified and attacked radii, as a table
    and a picture, from the calibration split and held-out auxiliary images alone: test data are
    never looked at. A value whose training fails is a row that says why.

    Example: greg-cert tune configs/digits_energy.yaml --for lambda_lipschitz --values 0,0.01,0.1

    Example: greg-cert tune experiment.yaml --for model.activation --values relu,maxmin --seeds 3
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.cli.tune_runs import Plan, measured_runs, write_tuning
    from greg_cert.config.tuned import load_tuned
    from greg_cert.errors import UsageError
    from greg_cert.files import file_name

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("tune: expected one process, but got several of a launcher")
    if not 0 <= held_out < 1:
        raise UsageError(f"--held-out: expected a share in [0, 1), but got {held_out}")
    typed = [value.strip() for value in values.split(",")]
    if not all(typed):
        raise UsageError(f"--values: expected values such as 0,0.01,0.1, but got {values!r}")
    tuned = load_tuned(config, for_, typed, set_ or ())
    first = next(iter(tuned.configs.values()))
    folder = out or Path("tune") / file_name(first.title)
    settings = verify_settings(
        first.verify, samples=samples, method=method, device=device, side="id", auc_radii=()
    )
    plan = Plan(tuned, for_, seeds, settings, held_out, folder, resume, screen.command_line())
    screen.plain(f"setting: {', '.join(tuned.keys)}{f' ({tuned.why})' if tuned.why else ''}")
    runs = measured_runs(plan)
    with screen.waiting("draw the picture"):
        files, sheet, record = write_tuning(plan, runs)
    screen.record({**record, "files": files})
    screen.out(terminal_table(sheet))
    screen.plain(*(f"  {remark}" for remark in sheet.remarks), *files)
    if all(run.numbers.get("accuracy") is None for run in runs):
        raise UsageError(
            f"{for_}: no value could be trained, the first because of: {runs[0].error}"
        )
    screen.fail_on_violations(sum(run.numbers.get("violations") or 0 for run in runs))


def terminal_table(sheet: Sheet) -> Table:
    """The table for a terminal, deviations below their means."""
    from rich.table import Column, Table
    from rich.text import Text

    longest = max(len(line.names[0]) for line in sheet.lines)
    table = Table(
        Column("value", overflow="fold", min_width=min(longest, 10)),
        *(Column(h.short, justify="right", no_wrap=" " not in h.short) for h in sheet.heads),
        title=f"values of {sheet.title}: calibration data alone, medians of radii",
        box=None,  # all of it within 80 columns
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for line in sheet.lines:
        table.add_row(Text(line.names[0]), *(c.replace(" ± ", "\n±") for c in line.cells))
    return table
