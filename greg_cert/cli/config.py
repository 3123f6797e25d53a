"""`greg-cert config show|check|schema`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greg_cert.cli import screen

if TYPE_CHECKING:
    from greg_cert.config import ExperimentConfig, OwnModelConfig

commands = typer.Typer(no_args_is_help=True, help="Show, check and explain experiment files.")


@commands.command()
def show(
    config: Annotated[Path, typer.Argument(help="YAML file, or run folder.")],
    set_: screen.Set = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Show a configuration with every default filled in and every path made absolute.

    Example: greg-cert config show experiment.yaml --set train.epochs=5
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.config import dump_config, load_any

    found = load_any(_file(config), set_ or ())
    screen.record(found.model_dump(mode="json"))
    screen.plain(*dump_config(found).splitlines())


@commands.command()
def check(
    configs: Annotated[list[Path], typer.Argument(help="YAML files, or run folders.")],
    data: Annotated[
        bool,
        typer.Option(
            "--data", help="Read data and weights too, as a training or evaluation would."
        ),
    ] = False,
    trust: screen.Trust = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Check files without running them: exit code 2 and a line for each that is wrong.

    Example: greg-cert config check configs/*.yaml --data
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.config import load_any
    from greg_cert.errors import GregCertError, visible

    records: list[dict[str, Any]] = []
    for path in configs:
        record: dict[str, Any] = {"file": path, "error": None}
        try:
            found = load_any(_file(path))
            record |= {"title": found.title, "network": found.network, "method": found.method}
            words = f"{found.title}: {found.network}, {found.method}"
            if data:
                with screen.waiting(f"read the data of {path}"):
                    record["data"] = _sizes(path, found, trust or ())
                words += "; " + ", ".join(f"{k} {v}" for k, v in record["data"].items())
            screen.plain(f"{path}: ok ({words})")
        except GregCertError as error:
            record["error"] = str(error)
            sys.stderr.write(f"greg-cert: error: {visible(str(path))}: {record['error']}\n")
        records.append(record)
    screen.record({"schema": 1, "files": records})
    if any(record["error"] for record in records):
        raise typer.Exit(2)


@commands.command()
def schema(
    section: Annotated[
        str | None, typer.Argument(help="One part alone, as train.stages or data.ood.")
    ] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Of the file that describes a model from elsewhere.")
    ] = False,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """List every key with type, default and meaning; with --json, a JSON Schema for editors.

    Example: greg-cert config schema train.stages

    Example: greg-cert config schema --json > greg-cert.schema.json
    """
    screen.speak(json=json, quiet=quiet)
    import shutil
    import textwrap

    from greg_cert.config import ExperimentConfig, OwnModelConfig
    from greg_cert.config.describe import json_schema, keys_of

    kind = OwnModelConfig if model else ExperimentConfig
    rows = keys_of(kind, section or "")
    screen.record(json_schema(kind))
    width = max(20, min(100, shutil.get_terminal_size().columns))
    for row in rows:
        told = row.default if row.default == "required" else f"default {row.default}"
        default = f"  ({told})" if row.default else ""
        screen.plain(f"{row.key}: {row.values}{default}")
        for line in textwrap.wrap(row.meaning, width - 4):
            screen.plain(f"    {line}")


def _file(path: Path) -> Path:
    """The configuration in a run folder, or the file itself."""
    from greg_cert.files import is_folder

    return path / "config.yaml" if is_folder(path) else path


def _sizes(
    path: Path, config: ExperimentConfig | OwnModelConfig, trust: Sequence[str]
) -> dict[str, int]:
    """How many images each role has, once all is known to be fit for what comes next.

    That is a training for an experiment, and an evaluation for a run that was trained or a model
    from elsewhere, whose code runs.
    """
    from greg_cert.config import ExperimentConfig
    from greg_cert.data import load_data
    from greg_cert.runs.own_model import OwnModel
    from greg_cert.runs.records import RunFolder
    from greg_cert.runs.subjects import Subject, common_data
    from greg_cert.train import check

    run = RunFolder(path, tuple(trust))
    if isinstance(config, ExperimentConfig) and not run.complete:
        if path.is_dir():
            run.check_code()
        splits = load_data(config.data)
        check(config, splits)
    else:
        subject: Subject = run if isinstance(config, ExperimentConfig) else OwnModel(path)
        subject.load_model()
        splits = common_data([subject])
    found = {"train": splits.train, "calibration": splits.calibration, "test": splits.test}
    if splits.aux is not None:
        found["aux"] = splits.aux
    found |= {f"ood/{name}": images for name, images in splits.ood.items()}
    return {name: len(images) for name, images in found.items()}
