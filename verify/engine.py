"""What `certify` needs from bound propagation, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.graph import Graph
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
        from greg_cert.verify.lirpa_engine import AutoLirpaEngine

        return AutoLirpaEngine(graph)
    if name == "native":
        from greg_cert.verify.native_engine import NativeEngine

        return NativeEngine(graph, memory)
    raise UsageError(f"expected engine in {', '.join(ENGINES)}, but got {name!r}")
