"""`greg-cert report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen
from greg_cert.errors import UsageError

VENUE_HELP = (
    "Column width and type of neurips, iclr, icml, aistats, cvpr, iccv, wacv, eccv, lncs, aaai, "
    "acm, ieee, jmlr, tmlr, acl or usenix."
)
Venue = Annotated[str | None, typer.Option(help=VENUE_HELP)]
Columns = Annotated[int | None, typer.Option(help="Columns of a page that a figure spans: 1 or 2.")]


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `greg-cert verify` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to; FOLDER/report by default.")] = None,
    venue: Venue = None,
    columns: Columns = None,
    width: Annotated[
        float | None, typer.Option(help="Width of the figures in inches; 3.25 without --venue.")
    ] = None,
    font: Annotated[
        str | None, typer.Option(help="Family of the type, such as STIXGeneral to match Times.")
    ] = None,
    font_size: Annotated[float | None, typer.Option(help="Size of labels in points.")] = None,
    palette: Annotated[
        str, typer.Option(help="colour (safe for colour-blind readers and grey print) or grey.")
    ] = "colour",
    dpi: Annotated[int, typer.Option(help="Resolution of the PNG figures.")] = 300,
    bins: Annotated[
        int | None, typer.Option(help="Bins of the histograms; by default as many as samples bear.")
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="Write the figures as SVG too.")] = False,
    only: Annotated[
        str | None,
        typer.Option(help="Draw these figures alone: radius_histogram,bracket."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="Runs to show, in this order: greg+,energy; may be repeated."),
    ] = None,
    table_columns: Annotated[
        str | None,
        typer.Option(help="Columns of the tables, in this order: auroc,certified,attack,share."),
    ] = None,
    attack_radii: Annotated[
        bool, typer.Option("--attack-radii", help="Attack radii in the histogram of radii too.")
    ] = False,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run folder of a verified run, for the figure of training; may be repeated. "
            "By default runs are looked for around FOLDER.",
        ),
    ] = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Draw the tables, figures and page again from results, without computing anything anew.

    Figures are written as PNG and as vector PDF; `figures.tex` holds them with their captions.
    Where the run folders are at hand, `training_gradient` shows the gradient norm of the score
    over training.

    Example: greg-cert report runs/greg+/verify --venue cvpr --columns 2 --palette grey

    Example: greg-cert report runs/greg+/verify --venue neurips --only radius_histogram,bracket

    Example: greg-cert report runs/greg+/verify --rows greg+,energy --table-columns auroc,certified
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.report import (
        load_results,
        summary_table,
        venue_style,
        write_figures,
        write_report,
    )
    from greg_cert.report.write import chosen_runs

    style = venue_style(
        venue,
        columns,
        width=width,
        font_size=font_size,
        font=font,
        dpi=dpi,
        bins=bins,
        palette=palette,
        attack=attack_radii,
    )
    names = _split(table_columns)
    if only is not None:
        if names:
            raise UsageError("--table-columns: expected no --only beside it, which draws no table")
        with screen.waiting("draw the figures"):
            drawn = write_figures(
                *(folder, out),
                only=_split(only),
                style=style,
                runs=run or None,
                svg=svg,
                rows=rows or (),
            )
        paths = [path for figure in drawn.values() for path in figure]
        screen.record({"schema": 1, "files": paths, "notes": []})
        screen.plain(*paths)
        return
    with screen.waiting("draw the report"):
        files = write_report(
            *(folder, out),
            style=style,
            runs=run or None,
            svg=svg,
            rows=rows or (),
            columns=names,
        )
    screen.record({"schema": 1, "files": list(files), "notes": files.notes})
    screen.note(*files.notes)
    if "training_gradient" not in files.figures and not files.notes:
        screen.note("no figure of training: its run folders were not found; name them with --run")
    screen.out(summary_table(chosen_runs(load_results(folder), rows or ()), names))
    screen.plain(*files)


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]
