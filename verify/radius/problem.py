"""The problem that radii are proven for: a network, its engines, the norm; a batch of centres."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from greg_cert.errors import EngineError
from greg_cert.verify.bounds.coupled.ball_boxes import layer_norms
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.bounds.engine import Engine, RegionEngine
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.trace import with_whole_pools
from greg_cert.verify.radius.goals import Goal


@dataclass(frozen=True)
class Batch:
    """Centres of balls, and what is known of each.

    Attributes:
        x: (B, ...) centres, float64.
        logits: (B, K) there.
        first_order: (B,) a guess of the radius.
        known: (B,) radii that are proven already; None where nothing is.
    """

    x: Tensor
    logits: Tensor
    first_order: Tensor
    known: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def of(self, members: Tensor) -> Batch:
        """Some of the centres, by index."""
        known = None if self.known is None else self.known[members]
        return Batch(self.x[members], self.logits[members], self.first_order[members], known)

    def knowing(self, known: Tensor | None) -> Batch:
        """The same with other radii that are proven already."""
        return replace(self, known=known)


class Prove(Protocol):
    """A way of proving, made ready for one network."""

    def __call__(self, batch: Batch, goal: Goal) -> Tensor:
        """Radii (B,) within which the goal of each centre is proven to hold."""


@dataclass(frozen=True, eq=False)
class Engines:
    """The engines that prove and that search, by bounds of the same kind.

    Attributes:
        graph: in float64.
        draft: the same in float32.
        prover: of `graph`; its bounds are what is claimed.
        careful: of `graph`, for searches that fail in float32.
        scout: of `draft`: what a search finds is only where to look.
    """

    graph: Graph
    draft: Graph
    prover: Engine
    careful: Engine
    scout: Engine


class Problem:
    """One network and the balls that radii are about.

    Args:
        model: raw images to logits; None where the graph is all there is.
        graph: the same in float64.
        engine: whose bounds prove: `auto`, `native` or `auto-lirpa`.
        score: which γ is about.
        norm: of the balls, 2 or inf.
        max_radius: radii are capped here.
        memory: budget in bytes; None for the usual one.
    """

    def __init__(
        self,
        model: nn.Module | None,
        graph: Graph,
        engine: str = "native",
        score: str = "energy",
        norm: float = 2.0,
        max_radius: float = 1.0,
        memory: int | None = None,
    ) -> None:
        self.graph, self.score, self.norm, self.max_radius = graph, score, norm, max_radius
        self.memory = memory
        self._model, self._engine = model, engine
        self._prover = make_engine(engine, graph, memory)
        self.graphs = [graph]
        """All that bounds are about: samples and ends of attacks are compared with each."""

    @property
    def is_native(self) -> bool:
        """Whether the engine that proves can cut and split balls, as the native one alone can."""
        return isinstance(self._prover, RegionEngine)

    def need_native(self, method: str, why: str) -> None:
        """Raises `EngineError` for any other engine than the native one; `why` completes it."""
        if not self.is_native:
            raise EngineError(
                f"expected engine 'native' for the method {method}, but got {self._engine!r}, {why}"
            )

    @cached_property
    def draft(self) -> Graph:
        """The graph in float32."""
        return self.graph.to(torch.float32)

    @cached_property
    def pooled(self) -> Graph:
        """The graph with whole max pools, for bounds that know a ball."""
        if self._model is None:
            return self.graph
        pooled = with_whole_pools(self._model, self.graph)
        if pooled is not self.graph:
            self.graphs.append(pooled)
        return pooled

    @cached_property
    def pooled_draft(self) -> Graph:
        """The same in float32."""
        return self.draft if self.pooled is self.graph else self.pooled.to(torch.float32)

    @cached_property
    def linear(self) -> Engines:
        """Bounds by CROWN and its kind; the native engine searches, whoever proves."""
        careful = self._prover if self.is_native else NativeEngine(self.graph, self.memory)
        scout = NativeEngine(self.draft, self.memory)
        return Engines(self.graph, self.draft, self._prover, careful, scout)

    @cached_property
    def coupled(self) -> Engines:
        """Bounds that know an ℓ2 ball, by one multiplier a layer."""
        norms = layer_norms(self.pooled)  # those of the draft would be found anew
        prover = CoupledEngine(self.pooled, norms)
        scout = CoupledEngine(self.pooled_draft, norms)
        return Engines(self.pooled, self.pooled_draft, prover, prover, scout)
