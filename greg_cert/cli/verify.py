"""`greg-cert verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from greg_cert.cli import screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to verify.")],
    baseline: Annotated[
        Path | None, typer.Option(help="Run folder to compare with, on the same samples.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; RUN/verify or RUN/verify-linf."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="How many ID test samples; 0 for all.", min=0)
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Norm of radii: 2 or inf.")] = None,
    max_radius: Annotated[float | None, typer.Option(help="Radii are capped here.")] = None,
    tpr: Annotated[
        float | None, typer.Option(help="Share of the calibration split to accept.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="crown, crown-ibp, lipschitz or best.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, auto-lirpa or native.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples and the attacks.")] = None,
) -> None:
    """Certify how far ID test samples stay accepted, and compare runs sample by sample.

    What is not given comes from the `verify` section of the first run's configuration.

    Example: greg-cert verify runs/greg+ --baseline runs/energy --samples 300
    """
    from greg_cert.records import RunFolder

    folders = [RunFolder(path) for path in runs]
    settings = _settings(
        folders[0],
        samples=samples,
        norm=norm,
        max_radius=max_radius,
        tpr=tpr,
        method=method,
        engine=engine,
        seed=seed,
    )
    verify_and_report(
        folders,
        settings,
        out or runs[0] / ("verify" if settings.norm == "2" else "verify-linf"),
        baseline=None if baseline is None else RunFolder(baseline),
    )


def verify_and_report(folders: list[Any], settings: Any, out: Path, *, baseline: Any) -> None:
    """Verify runs, write the report, show the table and where everything lies."""
    from greg_cert.errors import EngineError
    from greg_cert.report import load_results, summary_table, write_report
    from greg_cert.verify.runs import verify_runs

    with screen.verify_bar() as bar:
        done = verify_runs(
            folders,
            settings,
            out,
            baseline=baseline,
            command=screen.command_line(),
            progress=bar,
        )
    files = write_report(out)
    screen.out(summary_table(load_results(out)))
    screen.plain(f"results: {out / 'summary.json'}")
    screen.plain(f"         {out / 'certificates.parquet'}")
    screen.plain(f"report:  {files.html}")
    violations = sum(run.summary["violations"] for run in done)
    if violations:
        raise EngineError(
            f"{violations} certificates are contradicted by an attack: do not use these results, "
            "and please report them as a bug"
        )


def _settings(run: Any, **given: Any) -> Any:
    """The run's own settings with what the user gave on top, validated again."""
    from pydantic import ValidationError

    from greg_cert.config import VerifyConfig
    from greg_cert.errors import UsageError

    values = run.config.verify.model_dump()
    values.update({k: v for k, v in given.items() if v is not None})
    if given["samples"] == 0:
        values["samples"] = None
    try:
        return VerifyConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {problem['msg']}, but got {problem['input']!r}") from error
