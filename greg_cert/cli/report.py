"""`greg-cert report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `greg-cert verify` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to; FOLDER/report by default.")] = None,
    width: Annotated[float, typer.Option(help="Width of the figures in inches.")] = 3.25,
    dpi: Annotated[int, typer.Option(help="Resolution of the PNG figures.")] = 300,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run folder of a verified run, for the figure of training; may be repeated. "
            "By default runs are looked for around FOLDER.",
        ),
    ] = None,
) -> None:
    """Draw the tables, figures and page again from results, without computing anything anew.

    Where the run folders are at hand, the figure `training_gradient` shows the gradient norm of the
    score over training.

    Example: greg-cert report runs/greg+/verify --width 6.75
    """
    from greg_cert.report import FigureStyle, load_results, summary_table, write_report

    files = write_report(folder, out, style=FigureStyle(width=width, dpi=dpi), runs=run or None)
    for note in files.notes:
        screen.note(note)
    if "training_gradient" not in files.figures and not files.notes:
        screen.note("no figure of training: its run folders were not found; name them with --run")
    screen.out(summary_table(load_results(folder)))
    for path in files:
        screen.plain(str(path))
