"""The commands; heavy imports wait until one runs, so `--help` answers at once."""

from __future__ import annotations

import typer

from greg_cert.cli import (
    compare,
    config,
    demo,
    doctor,
    evaluate,
    predict,
    report,
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
