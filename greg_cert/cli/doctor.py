"""`greg-cert doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from greg_cert.cli import screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    run: Annotated[Path, typer.Argument(help="Run folder, or YAML file of a model.")],
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Show how a run's model looks to the verifier, layer by layer, before hours are spent.

    Says which engine takes each layer, which method runs on which engine, about what a sample
    costs, and how steep the layers and the score are at most. A layer that cannot be bounded
    soundly is named, and the exit code is 2.

    Example: greg-cert doctor runs/greg+
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.errors import UnsupportedModelError
    from greg_cert.subjects import open_subject
    from greg_cert.verify.diagnose import diagnose

    folder = open_subject(run)
    with screen.waiting(f"look at {run}"):
        model = folder.load_model()
        sizes = folder.manifest["model"]
        found = diagnose(model, (sizes["in_channels"], sizes["image_size"], sizes["image_size"]))
    screen.record({"schema": 1, "run": run, **asdict(found)})
    if found.layers:
        screen.out(_layers(found, f"{folder.config.title}: {folder.config.network}"))
        screen.out(_norms(found))
    for name, state in found.engines.items():
        screen.plain(f"engine {name}: {state}")
    for name, by in found.methods.items():
        screen.plain(f"method {name}: {by}")
    if found.refusal is not None:
        raise UnsupportedModelError(
            f"{found.refusal}. Of the methods above smoothing alone proves anything for it"
        )
    activations = sum("ReLU" in layer.kind or "smooth" in layer.kind for layer in found.layers)
    screen.plain(
        f"{activations} activation layers, {found.neurons} neurons; one sample takes about "
        f"{found.bytes_a_sample / 2**20:.1f} MiB besides coefficients, and one ball of it took "
        f"{found.seconds_a_ball:.2g} s here (a radius takes some 10 to 30 balls)"
    )
    screen.plain(
        f"the energy is nowhere steeper than {found.lipschitz:.4g} (proven): a radius is at least "
        "its distance to the threshold divided by that"
    )
    screen.plain("every layer can be bounded soundly")


def _layers(found: Any, title: str) -> Any:
    from rich.table import Table

    table = Table(title=f"{title}, as it is bounded")
    for column in ("layer", "bounded as", "reads", "output", "native", "auto-lirpa"):
        table.add_column(column)
    for layer in found.layers:
        table.add_row(
            layer.name,
            layer.kind,
            ", ".join(layer.reads),
            "x".join(map(str, layer.shape)),
            layer.engines["native"],
            layer.engines["auto-lirpa"],
        )
    return table


def _norms(found: Any) -> Any:
    from rich.table import Table

    table = Table(title="operator norms, and the Lipschitz constant of the energy")
    table.add_column("layer")
    for column in ("at most (proven)", "power iteration"):
        table.add_column(column, justify="right")
    for layer in found.layers:
        if layer.norm is not None:
            table.add_row(layer.name, f"{layer.norm:.5g}", f"{layer.norm_from_below:.5g}")
    table.add_row("the whole", f"{found.lipschitz:.5g}", "")
    return table
