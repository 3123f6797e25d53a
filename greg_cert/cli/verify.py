"""`greg-cert verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from greg_cert.cli import screen
from greg_cert.cli.settings import offers, verify_settings
from greg_cert.launcher import first_process


@offers()
def verify(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or YAML files of models from elsewhere.")
    ],
    baseline: Annotated[
        Path | None, typer.Option(help="Run folder to compare with, on the same samples.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; RUN/verify or RUN/verify-linf."),
    ] = None,
    settings: Any = None,
    classes: Annotated[
        str | None, typer.Option(help="Only ID samples with these labels: 0,3,7.")
    ] = None,
    indices: Annotated[
        str | None, typer.Option(help="These ID test samples, all of them: 5,9,100-120.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Verify at most so many samples now.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="Begin no more samples after this time: 90s, 20m, 1h.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Attack every certificate again, harder.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop earlier results in the folder.")
    ] = False,
    set_: screen.Set = None,
    trust: screen.Trust = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Certify how far ID test samples stay accepted, and compare runs sample by sample.

    What is not given comes from the `verify` section of the first run's configuration. A command
    that was stopped, or has a limit, goes on when it is given again. Several processes: torchrun
    --nproc-per-node 4 -m greg_cert verify RUN.

    Example: greg-cert verify runs/greg+ --baseline runs/energy --samples 300

    Example: greg-cert verify my_model.yaml --method crown,branch --samples 50 --side both

    Example: greg-cert verify runs/greg+ --side ood --set "data.ood=[{source: folder, path: new}]"
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.config import revised
    from greg_cert.errors import UsageError
    from greg_cert.runs.subjects import open_subject
    from greg_cert.verify.run.selection import Selection, parse_numbers, parse_seconds

    if settings["samples"] is not None and indices is not None:
        raise UsageError("expected --samples or --indices, but got both")
    selection = Selection(
        None if classes is None else parse_numbers("--classes", classes),
        None if indices is None else parse_numbers("--indices", indices),
        limit,
    )
    seconds = None if time_budget is None else parse_seconds("--time-budget", time_budget)
    of_data = [text for text in set_ or () if text.strip().startswith("data")]
    of_verify = [text.removeprefix("verify.") for text in set_ or () if text not in of_data]
    subjects = [open_subject(path, of_data, trust) for path in runs]
    chosen = verify_settings(revised(subjects[0].config.verify, of_verify), **settings)
    folder = runs[0] if runs[0].is_dir() else runs[0].with_suffix("")
    verify_and_report(
        subjects,
        chosen,
        out or folder / ("verify" if chosen.norm == "2" else "verify-linf"),
        baseline=None if baseline is None else open_subject(baseline, of_data, trust),
        selection=selection,
        time_budget=seconds,
        audit=audit,
        restart=restart,
    )


def verify_and_report(
    folders: list[Any], settings: Any, out: Path, *, baseline: Any, **options: Any
) -> None:
    """Verify runs, write the report, show the tables and where everything lies.

    `options` are those of `greg_cert.verify.run.runs.verify_runs`.
    """
    from greg_cert.certificates.format import CERTIFICATES
    from greg_cert.report import load_results, summary_table, write_report
    from greg_cert.verify.run.runs import verify_runs

    with screen.verify_bar() as bar:
        done = verify_runs(
            folders,
            settings,
            out,
            baseline=baseline,
            command=screen.command_line(),
            progress=bar,
            **options,
        )
    if not first_process():
        return
    screen.record(
        {
            "schema": 1,
            "complete": done.complete,
            "samples": done.samples,
            "wanted": done.wanted,
            "violations": done.violations,
            "audit": done.audit,
            "out": out,
            "files": list(done.files),
            "runs": {run.name: run.summary for run in done.runs},
        }
    )
    report = None
    if out / CERTIFICATES in done.files:
        with screen.waiting("draw the report"):
            report = write_report(out)
        screen.out(summary_table(load_results(out)))
    elif any(len(run.ood_frame) for run in done.runs):
        screen.out(_ood_table(done))
    if not done.complete:
        screen.plain(
            f"incomplete: {done.samples} of {done.wanted} samples are finished, of each set a "
            "random part; the same command goes on"
        )
    if done.audit is not None:
        screen.plain(
            "audit: {attacks} of {certificates} certificates attacked again ({steps} steps, "
            "{restarts} restarts), {violations} contradicted".format(**done.audit)
        )
    for i, path in enumerate(done.files):
        screen.plain(f"{'results: ' if i == 0 else '         '}{path}")
    if report is not None:
        screen.plain(f"report:  {report.html}")
    worst, told = done.worst, ""
    if worst is not None:
        told = (
            f", worst of all that of {'ID' if worst['part'] == 'id' else worst['part']} sample "
            f"{worst['index']} under run {worst['run']}: radius {worst['radius']:.6g}, crossed at "
            f"{worst['crossed']:.6g}"
        )
    screen.fail_on_violations(done.violations, told)


def _ood_table(done: Any) -> Any:
    """The OOD side: a line for each run and OOD test set."""
    from rich.table import Column, Table
    from rich.text import Text

    from greg_cert.certificates.format import CERTIFIED, REJECTED, UNDECIDED

    counts = ("n", "certified", "accepted", "undecided", "radius", "attack", "viol.")
    table = Table(
        *(Column(name, no_wrap=True) for name in ("run", "OOD set")),
        *(Column(name, justify="right", no_wrap=True) for name in counts),
        box=None,  # all of it within 80 columns
        pad_edge=False,
        title="OOD test samples that stay rejected: counts, and medians of radii",
        caption="accepted: as ID, before any perturbation; its radius is 0",
    )
    for run in done.runs:
        for name, values in run.summary["ood_side"].items():
            status = values["status"]
            medians = (values[f"{k}_radius"]["median"] for k in ("certified", "attack"))
            table.add_row(
                Text(run.name),
                Text(name),
                str(values["samples"]),
                *(str(status[s]) for s in (CERTIFIED, REJECTED, UNDECIDED)),
                *("none" if m is None else f"{m:.4f}" for m in medians),
                str(values["violations"]),
            )
    return table
