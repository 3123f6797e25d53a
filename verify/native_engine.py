"""Bound propagation of our own: per-sample radii, exact ℓ2 in the first layers, chunked memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.crown import backward_rows
from greg_cert.verify.engine import RELAXATIONS
from greg_cert.verify.graph import NONLINEAR, Graph, Node, Smooth
from greg_cert.verify.interval import Interval, forward_interval
from greg_cert.verify.linear_bound import slope_norms, value_at_centre

_CHUNK_ELEMENTS = 2**24  # of one coefficient tensor (B, R, widest layer): 128 MiB in float64


@dataclass(frozen=True)
class NativeRelaxation:
    """The network between linear bounds over the balls it was relaxed for."""

    graph: Graph
    inputs: Tensor
    radii: Tensor
    norm: float
    preactivations: Mapping[int, Interval]

    def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Relaxation.linear`."""
        last = len(self.graph.nodes) - 1
        slope, offset, size = backward_rows(self.graph, self.preactivations, last, rows)
        return value_at_centre(slope, offset, size, self.inputs), slope_norms(slope, self.norm)

    def lower(self, rows: Tensor) -> Tensor:
        """See `Relaxation.lower`."""
        value, slope = self.linear(rows)
        return value - self.radii.unsqueeze(1) * slope


class NativeEngine:
    """CROWN, or CROWN-IBP, on the canonical graph."""

    name = "native"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._widest = max(int(torch.Size(n.shape).numel()) for n in graph.nodes)
        self._affine = _affine_nodes(graph)

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> NativeRelaxation:
        """See `Engine.relax`."""
        if method not in RELAXATIONS:
            raise UsageError(f"expected relaxation in {', '.join(RELAXATIONS)}, but got {method!r}")
        with torch.no_grad():
            bounds = self._preactivations(inputs, radii, norm, method)
        return NativeRelaxation(self._graph, inputs, radii, norm, bounds)

    def _preactivations(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str
    ) -> dict[int, Interval]:
        found: dict[int, Interval] = {}
        ball = radii.reshape(-1, *[1] * (inputs.ndim - 1))
        intervals: list[Interval] = [(inputs - ball, inputs + ball)]
        for i, node in enumerate(self._graph.nodes[1:], start=1):
            source = node.inputs[0]
            if isinstance(node.op, NONLINEAR):
                if method == "crown" or source in self._affine:
                    intervals[source] = self._tighten(
                        source, intervals[source], found, inputs, radii, norm,
                        _is_loose_if_wide if isinstance(node.op, Smooth) else _is_loose_at_zero,
                    )  # fmt: skip
                found[i] = intervals[source]
            intervals.append(forward_interval(node.op, [intervals[j] for j in node.inputs]))
        return found

    def _tighten(
        self,
        target: int,
        interval: Interval,
        known: Mapping[int, Interval],
        inputs: Tensor,
        radii: Tensor,
        norm: float,
        loose: Callable[[Tensor, Tensor], Tensor],
    ) -> Interval:
        """The interval of a node, intersected with CROWN's where that is of use."""
        node = self._graph.nodes[target]
        low, high = interval[0].flatten(1).clone(), interval[1].flatten(1).clone()
        unknown = loose(low, high).any(0).nonzero().squeeze(1)
        shared = target in self._affine  # without an activation before it, one slope serves all
        for chunk in self._chunks(unknown, 1 if shared else len(inputs)):
            rows = _unit_rows(chunk, node, inputs.new_empty(0))
            rows = torch.cat([rows, -rows], dim=1)
            if not shared:
                rows = rows.expand(len(inputs), *rows.shape[1:])
            slope, offset, size = backward_rows(self._graph, known, target, rows)
            centre = value_at_centre(slope, offset, size, inputs)
            bound = centre - radii.unsqueeze(1) * slope_norms(slope, norm)
            below, above = bound.split(len(chunk), dim=1)
            # Only where it is of use to the sample itself: no sample's bounds depend on its batch.
            own_low, own_high = low[:, chunk], high[:, chunk]
            own = loose(own_low, own_high)
            low[:, chunk] = torch.where(own, torch.maximum(own_low, below), own_low)
            high[:, chunk] = torch.where(own, torch.minimum(own_high, -above), own_high)
        return low.unflatten(1, node.shape), high.unflatten(1, node.shape)

    def _chunks(self, indices: Tensor, batch: int) -> Iterator[Tensor]:
        size = max(1, _CHUNK_ELEMENTS // (2 * batch * self._widest))
        return iter(indices.split(size)) if len(indices) else iter(())


def _affine_nodes(graph: Graph) -> frozenset[int]:
    """Nodes with no activation between them and the input."""
    affine = {0}
    for i, node in enumerate(graph.nodes[1:], start=1):
        if not isinstance(node.op, NONLINEAR) and all(j in affine for j in node.inputs):
            affine.add(i)
    return frozenset(affine)


def _is_loose_at_zero(low: Tensor, high: Tensor) -> Tensor:
    """Where a tighter interval changes a ReLU's lines: where the sign is unknown."""
    return (low < 0) & (high > 0)


def _is_loose_if_wide(low: Tensor, high: Tensor) -> Tensor:
    """Where a tighter interval changes a smooth activation's lines."""
    return low < high


def _unit_rows(indices: Tensor, node: Node, like: Tensor) -> Tensor:
    """(1, R, *shape) rows that read single neurons."""
    size = int(torch.Size(node.shape).numel())
    rows = like.new_zeros(len(indices), size)
    rows[torch.arange(len(indices), device=indices.device), indices] = 1.0
    return rows.reshape(1, -1, *node.shape)
