"""`greg-cert doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Show how a run's model looks to the verifier, layer by layer, before hours are spent.

    A layer that cannot be bounded soundly is named, and the exit code is 2.

    Example: greg-cert doctor runs/greg+
    """
    from rich.table import Table

    from greg_cert.errors import EngineError
    from greg_cert.records import RunFolder
    from greg_cert.verify.engine import make_engine
    from greg_cert.verify.graph import Smooth
    from greg_cert.verify.smooth import SHAPES
    from greg_cert.verify.trace import trace_model

    folder = RunFolder(run)
    model = folder.load_model()
    sizes = folder.manifest["model"]
    shape = (sizes["in_channels"], sizes["image_size"], sizes["image_size"])
    graph = trace_model(model, shape)
    table = Table(title=f"{folder.config.title}: {folder.config.model.name}, as it is bounded")
    for title in ("layer", "bounded as", "reads", "output"):
        table.add_column(title)
    for node in graph.nodes:
        kind = type(node.op).__name__
        if isinstance(node.op, Smooth):
            kind = SHAPES[node.op.kind].name
        source = ", ".join(graph.nodes[j].name for j in node.inputs)
        table.add_row(node.name, kind, source, "x".join(map(str, node.shape)))
    screen.out(table)
    for name in ("auto-lirpa", "native"):
        try:
            make_engine(name, graph)
            screen.plain(f"engine {name}: ready")
        except EngineError as error:
            screen.plain(f"engine {name}: {error}")
    neurons = sum(_size(graph.nodes[i].shape) for i in graph.activations)
    screen.plain(
        f"{len(graph.activations)} activation layers, {neurons} neurons, "
        f"{graph.num_classes} classes: every layer can be bounded soundly"
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
