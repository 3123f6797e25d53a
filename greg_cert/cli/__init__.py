"""The command line; heavy imports wait until a command runs, so `--help` answers at once."""

from __future__ import annotations

import sys

import typer

from greg_cert.cli import (
    compare,
    config,
    demo,
    doctor,
    evaluate,
    predict,
    report,
    screen,
    train,
    tune,
    verify,
)

app = typer.Typer(
    name="greg-cert",
    help="Train OOD detectors with gradient regularisation and certify how far they hold.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (
    *(demo.demo, train.train, tune.tune, verify.verify, compare.compare),
    *(evaluate.evaluate, report.report, predict.predict, doctor.doctor),
):
    app.command()(command)
app.add_typer(config.commands, name="config")


def main() -> None:
    """Run the command line; exit 2 for an error of input, 1 for anything else."""
    from greg_cert.errors import GregCertError, UsageError

    try:
        with screen.warnings_as_notes():
            app()
    except GregCertError as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"greg-cert: error: {line}\n")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("greg-cert: interrupted\n")
        sys.exit(130)
