"""`greg-cert compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen
from greg_cert.cli.report import Columns, Venue


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that `greg-cert verify` wrote, two or more.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option(help="Name of the run that the others are compared with."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the result and its report.")] = Path(
        "compare"
    ),
    venue: Venue = None,
    columns: Columns = None,
    palette: Annotated[str, typer.Option(help="colour or grey.")] = "colour",
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder, for the figure of training; may be repeated."),
    ] = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Put verifications of different runs together, paired by sample, and report on all of them.

    They must be of the same data, norm, tpr, largest radius, side and methods. Samples that not all
    have are left out and counted. Runs of one name are told apart by their seeds, or by their own
    folders.

    Example: greg-cert compare runs/energy/verify runs/greg+/verify --baseline energy

    Example: greg-cert compare seed1/verify seed2/verify seed3/verify --out seeds --venue eccv
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.certificates.format import CERTIFICATES
    from greg_cert.report import (
        load_results,
        merge_verifications,
        summary_table,
        venue_style,
        write_report,
    )
    from greg_cert.report.tables.notes import left_out_words

    style = venue_style(venue, columns, palette=palette)
    with screen.waiting("put the folders together"):
        done = merge_verifications(folders, out, baseline=baseline, command=screen.command_line())
    for name, others in done.same.items():
        screen.note(f"run {name} is in {', '.join(others)} too, with the same rows; kept once")
    if done.left_out:
        screen.note(left_out_words(done.left_out))
    if done.baseline is None:
        screen.note(f"no baseline: name one of {', '.join(done.runs)} with --baseline")
    with screen.waiting("draw the report"):
        files = write_report(out, style=style, runs=run or None)
    screen.record(
        {
            "schema": 1,
            "runs": list(done.runs),
            "baseline": done.baseline,
            "violations": done.violations,
            "files": list(files),
        }
    )
    screen.note(*files.notes)
    screen.out(summary_table(load_results(out)))
    screen.plain(f"results: {out / CERTIFICATES}", f"report:  {files.html}")
    screen.fail_on_violations(done.violations)
