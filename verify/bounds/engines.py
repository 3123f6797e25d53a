"""The engines of bound propagation by name."""

from __future__ import annotations

from greg_cert.errors import UsageError
from greg_cert.verify.bounds.engine import Engine
from greg_cert.verify.graph.ops import Graph

ENGINES = ("auto", "auto-lirpa", "native")


def resolve_engine(name: str) -> str:
    """The engine that `auto` stands for; any other name as it is.

    That is the native one: it has a radius for each sample, cuts balls down to where violations may
    still lie, optimises slopes, and works in chunks. auto-LiRPA is the independent second opinion.
    """
    return "native" if name == "auto" else name


def make_engine(name: str, graph: Graph, memory: int | None = None) -> Engine:
    """The engine of that name for a graph; `memory` is a budget in bytes.

    Raises:
        UsageError: for an unknown name.
        EngineError: if the engine's package is missing, or it does not take the graph.
    """
    name = resolve_engine(name)
    if name == "auto-lirpa":
        from greg_cert.verify.bounds.lirpa.engine import AutoLirpaEngine

        return AutoLirpaEngine(graph)
    if name == "native":
        from greg_cert.verify.bounds.native_engine import NativeEngine

        return NativeEngine(graph, memory)
    raise UsageError(f"expected engine in {', '.join(ENGINES)}, but got {name!r}")
