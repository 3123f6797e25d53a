"""What `certify` needs from bound propagation, and nothing else (DESIGN §4)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.graph import Graph, Smooth
from greg_cert.verify.interval import Interval

ENGINES = ("auto", "auto-lirpa", "native")
RELAXATIONS = ("crown", "crown-ibp")


class Relaxation(Protocol):
    """A network relaxed over one ball a sample; every number is proven over the whole ball."""

    @property
    def preactivations(self) -> Mapping[int, Interval]:
        """For each activation node its input's (lower, upper), each (B, *shape)."""

    def lower(self, rows: Tensor) -> Tensor:
        """Lower bounds (B, R) of rows (B, R, K) times the logits; differentiable in `rows`."""

    def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A linear lower bound of rows (B, R, K) times the logits, over each ball.

        Returns:
            Its value at the centre and the dual norm of its slope, both (B, R).
        """


class Engine(Protocol):
    """Bound propagation for one network."""

    name: str

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> Relaxation:
        """Relax the network over the balls of `radii` (B,) about `inputs` (B, ...), float64.

        Args:
            inputs: centres.
            radii: positive radii, one a sample.
            norm: 2.0 or inf.
            method: how intermediate bounds are found: `crown`, or `crown-ibp` (faster, looser).
        """


def finite_bounds(relaxation: Relaxation) -> Tensor:
    """Samples (B,) all of whose pre-activation bounds are finite; nothing follows for others."""
    parts = [
        (low.isfinite() & high.isfinite()).flatten(1).all(1)
        for low, high in relaxation.preactivations.values()
    ]
    return torch.stack(parts).all(0) if parts else torch.tensor(True)


def resolve_engine(name: str, graph: Graph | None = None) -> str:
    """The engine that `auto` stands for here and for this graph; any other name as it is."""
    if name != "auto":
        return name
    if graph is not None and any(isinstance(n.op, Smooth) for n in graph.nodes):
        return "native"
    return "auto-lirpa" if importlib.util.find_spec("auto_LiRPA") else "native"


def make_engine(name: str, graph: Graph) -> Engine:
    """The engine of that name for a graph; `auto` takes auto-LiRPA where that is of use.

    That is: where it is installed, and takes the graph.

    Raises:
        UsageError: for an unknown name.
        EngineError: if the engine's package is missing, or it does not take the graph.
    """
    name = resolve_engine(name, graph)
    if name == "auto-lirpa":
        from greg_cert.verify.lirpa_engine import AutoLirpaEngine

        return AutoLirpaEngine(graph)
    if name == "native":
        from greg_cert.verify.native_engine import NativeEngine

        return NativeEngine(graph)
    raise UsageError(f"expected engine in {', '.join(ENGINES)}, but got {name!r}")
