"""Bound propagation of our own: per-sample radii, exact ℓ2 in the first layers, chunked memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.bounds.affine_rows import AffineRows
from greg_cert.verify.bounds.alpha import best_slopes
from greg_cert.verify.bounds.crown import Lines, backward_rows, neuron_rows
from greg_cert.verify.bounds.interval import Interval, forward_interval
from greg_cert.verify.bounds.linear_bound import value_at_centre
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import Region
from greg_cert.verify.bounds.windows import WindowPass, WindowPlan
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    NONLINEAR,
    Activation,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Op,
)
from greg_cert.verify.graph.rounding import absolute_terms

RELAXATIONS = ("crown", "crown-ibp", "alpha-crown")
_ELEMENTS = 2**19  # of one coefficient tensor (B, R, widest layer): what stays in a CPU's cache
_TENSORS = 8  # of that size that live at once
_CONTRADICTION = 1e-9  # by how much a lower bound must exceed an upper one, relative
_ALPHA_STEPS = 10


@dataclass(frozen=True)
class OutputConstraint:
    """What holds for every violation: row·f + constant < 0.

    Attributes:
        row: (B, K).
        constant: (B,).
        steepness: (B,) dual norm of the slope of its linear bound.
    """

    row: Tensor
    constant: Tensor
    steepness: Tensor

    def of(self, members: Tensor) -> OutputConstraint:
        """Those of some samples."""
        return OutputConstraint(self.row[members], self.constant[members], self.steepness[members])


class NativeEngine:
    """CROWN, CROWN-IBP or α-CROWN on the canonical graph.

    Args:
        graph: the network.
        memory: bytes that the coefficients may take; 1 GiB where it is not given.
    """

    name = "native"

    def __init__(self, graph: Graph, memory: int | None = None) -> None:
        self._graph = graph
        self._widest = max(torch.Size(n.shape).numel() for n in graph.nodes)
        self._affine = _affine_nodes(graph)
        size = torch.finfo(graph.dtype).bits // 8
        self._elements = _ELEMENTS if memory is None else max(1, memory // (size * _TENSORS))
        self._rows = AffineRows(graph, self._elements)
        self._plans: dict[int, WindowPlan | None] = {}

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> NativeRelaxation:
        """See `Engine.relax`; `method` may be `alpha-crown` too."""
        return self.relax_region(Region(inputs, radii, norm), method)

    def relax_region(
        self,
        region: Region,
        method: str = "crown",
        *,
        outer: NativeRelaxation | None = None,
        constraint: OutputConstraint | None = None,
    ) -> NativeRelaxation:
        """Relax the network where violations may still lie.

        Args:
            region: balls, with or without cuts.
            method: `crown`, `crown-ibp` or `alpha-crown`.
            outer: a relaxation over sets that hold these; its bounds are taken over.
            constraint: of the violations that the region is about; needs `outer` and a cut.
        """
        if method not in RELAXATIONS:
            raise UsageError(f"expected relaxation in {', '.join(RELAXATIONS)}, but got {method!r}")
        with torch.no_grad():
            bounds, lines, empty = self._preactivations(region, method, outer, constraint)
        return NativeRelaxation(
            self._graph,
            region,
            bounds,
            empty,
            self._terms(bounds, region),
            lines=lines,
            optimise=method == "alpha-crown",
            elements=self._elements,
        )

    def _preactivations(
        self,
        region: Region,
        method: str,
        outer: NativeRelaxation | None,
        constraint: OutputConstraint | None,
    ) -> tuple[dict[int, Interval], dict[int, Lines], Tensor]:
        inputs = region.inputs
        found: dict[int, Interval] = {} if outer is None else dict(outer.preactivations)
        lines: dict[int, Lines] = {} if outer is None else dict(outer.lines)
        empty = inputs.new_zeros(len(inputs), dtype=torch.bool)
        if outer is not None:
            empty |= outer.empty
        ball = region.radii.reshape(-1, *[1] * (inputs.ndim - 1))
        intervals: list[Interval] = [(inputs - ball, inputs + ball)]
        for i, node in enumerate(self._graph.nodes[1:], start=1):
            source = node.inputs[0]
            if isinstance(node.op, NONLINEAR):
                interval = intervals[source]
                if i in found:  # an outer bound; nodes before this one hold those of this region
                    interval = _meet(interval, found[i])
                settled = isinstance(node.op, MaxPool) and _of_activations(self._graph, source)
                if not settled and (method != "crown-ibp" or source in self._affine):
                    interval = self._tighten(
                        source,
                        interval,
                        found,
                        lines,
                        region,
                        method,
                        constraint,
                        node.op,
                    )
                intervals[source], contradiction = _ordered(interval)
                found[i] = intervals[source]
                lines.pop(i, None)
                empty |= contradiction
            intervals.append(forward_interval(node.op, [intervals[j] for j in node.inputs]))
        return found, lines, empty

    def _terms(self, known: Mapping[int, Interval], region: Region) -> dict[int, Tensor] | None:
        """Absolute terms of affine nodes; None in float32, which only drafts where to look."""
        if self._graph.dtype != torch.float64:
            return None
        return absolute_terms(self._graph, known, region.inputs, region.radii)

    def _tighten(
        self,
        target: int,
        interval: Interval,
        known: Mapping[int, Interval],
        lines: dict[int, Lines],
        region: Region,
        method: str,
        constraint: OutputConstraint | None,
        reader: Op,
    ) -> Interval:
        """The interval of a node, intersected with CROWN's where that is of use to its reader."""
        node = self._graph.nodes[target]
        low, high = interval[0].flatten(1).clone(), interval[1].flatten(1).clone()
        unknown = _is_loose(reader, *interval).flatten(1)
        terms = self._terms(known, region)
        shared = target in self._affine  # without an activation before it, one slope serves all
        if (
            shared
            and isinstance(node.op, (Conv, Linear))
            and (region.cut is None or region.norm == 2.0)
        ):
            below, above = self._rows.bounds(target, region, terms)
            if isinstance(reader, Activation) and reader.bends is not None:  # these cost nothing
                unknown = unknown | ~reader.bends.expand(node.shape).flatten()
            low = torch.where(unknown, torch.maximum(low, below), low)
            high = torch.where(unknown, torch.minimum(high, above), high)
            return low.unflatten(1, node.shape), high.unflatten(1, node.shape)
        plan = self._plan(target, region, method, constraint)
        windows = None if plan is None else WindowPass(plan, known, lines, terms, region)
        widest = self._widest if plan is None else plan.elements
        for chunk in self._chunks(unknown, shared, widest):
            if windows is not None:
                bound = windows.lowest(chunk)
            else:
                bound = self._lowest(target, chunk, known, lines, terms, region, method, constraint)
            below, above = bound.split(chunk.shape[1], dim=1)
            chunk = chunk.expand(len(low), -1)
            # Only where it is of use to the sample itself: no sample's bounds depend on its batch.
            own_low, own_high = low.gather(1, chunk), high.gather(1, chunk)
            own = unknown.gather(1, chunk)
            low.scatter_(1, chunk, torch.where(own, torch.maximum(own_low, below), own_low))
            high.scatter_(1, chunk, torch.where(own, torch.minimum(own_high, -above), own_high))
        return low.unflatten(1, node.shape), high.unflatten(1, node.shape)

    def _lowest(
        self,
        target: int,
        indices: Tensor,
        known: Mapping[int, Interval],
        lines: dict[int, Lines],
        terms: Mapping[int, Tensor] | None,
        region: Region,
        method: str,
        constraint: OutputConstraint | None,
    ) -> Tensor:
        """Lower bounds (B, 2R) of the neurons (B or 1, R) of a node and of their negatives."""
        start, rows, added = neuron_rows(self._graph, target, indices)
        rows, added = torch.cat([rows, -rows], 1), torch.cat([added, -added], 1)
        own = added.abs()  # absolute terms of the layer that was stepped over
        if terms is not None and start != target:
            own = terms[target].flatten(1).gather(1, indices.expand(len(region.inputs), -1))
            own = own.repeat(1, 2)
        if target not in self._affine:
            rows = rows.expand(len(region.inputs), *rows.shape[1:])
        slope, offset, size = backward_rows(self._graph, known, start, rows, terms, lines=lines)
        value = value_at_centre(slope, offset + added, size + own, region.inputs)
        bound = region.lowest(value, slope)
        if method == "alpha-crown" and target not in self._affine:
            bound = torch.maximum(
                bound, self._optimised(start, rows, added, own, known, terms, region)
            )
        # For an affine node the cut says nearly all of it, at a fraction of the cost.
        if constraint is None or region.cut is None or target in self._affine:
            return bound
        # Every violation has row·f + constant < 0, so z ≥ z + λ(row·f + constant) there.
        weight = region.multipliers(slope) / constraint.steepness.unsqueeze(1)
        weight = weight.nan_to_num(nan=0.0, posinf=0.0)
        last = len(self._graph.nodes) - 1
        together = weight.unsqueeze(2) * constraint.row.unsqueeze(1)
        slope, offset, size = backward_rows(
            self._graph,
            known,
            last,
            together,
            terms,
            more={start: rows.expand(len(weight), *rows.shape[1:])},
            lines=lines,
        )
        added = added + weight * constraint.constant.unsqueeze(1)
        size = size + own + added.abs()
        value = value_at_centre(slope, offset + added, size, region.inputs)
        return torch.maximum(bound, region.lowest(value, slope))

    def _optimised(
        self,
        start: int,
        rows: Tensor,
        added: Tensor,
        own: Tensor,
        known: Mapping[int, Interval],
        terms: Mapping[int, Tensor] | None,
        region: Region,
    ) -> Tensor:
        def lowest(slopes: Mapping[int, Tensor]) -> Tensor:
            slope, offset, size = backward_rows(
                self._graph, known, start, rows, terms, slopes=slopes
            )
            value = value_at_centre(slope, offset + added, size + own, region.inputs)
            return region.lowest(value, slope)

        before = {i: known[i] for i in self._graph.activations if i <= start}
        return best_slopes(self._graph, before, rows.shape[1], lowest, _ALPHA_STEPS)[0]

    def _plan(
        self, target: int, region: Region, method: str, constraint: OutputConstraint | None
    ) -> WindowPlan | None:
        """Windows for the neurons of a node; None where rows are whole maps."""
        if region.cut is not None and (region.norm != 2.0 or constraint is not None):
            return None  # multipliers need whole slopes
        if method == "alpha-crown":
            return None  # each row has slopes of its own
        if target not in self._plans:
            self._plans[target] = WindowPlan.of(self._graph, target)
        return self._plans[target]

    def _chunks(self, unknown: Tensor, shared: bool, widest: int) -> Iterator[Tensor]:
        """Indices of neurons of unknown sign, (1, R) for all samples or (B, R) for each its own.

        Samples with fewer than the most are filled up with other neurons.
        """
        if shared:
            indices = unknown.any(0).nonzero().squeeze(1).unsqueeze(0)
        else:
            most = int(unknown.sum(1).max())
            indices = unknown.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        size = max(1, self._elements // (2 * len(indices) * widest))
        return iter(indices.split(size, dim=1)) if indices.shape[1] else iter(())


def _meet(one: Interval, other: Interval) -> Interval:
    return torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])


def _ordered(interval: Interval) -> tuple[Interval, Tensor]:
    """The interval with its ends in order, and whether they contradict each other, (B,)."""
    low, high = interval
    allowed = _CONTRADICTION if low.dtype == torch.float64 else 1e-4
    crossed = low - high > allowed * (1 + low.abs() + high.abs())
    # Within the allowance it is rounding: the interval between both ends is the safe one.
    return (torch.minimum(low, high), torch.maximum(low, high)), crossed.flatten(1).any(1)


def _affine_nodes(graph: Graph) -> frozenset[int]:
    """Nodes with no activation between them and the input."""
    affine = {0}
    for i, node in enumerate(graph.nodes[1:], start=1):
        if not isinstance(node.op, NONLINEAR) and all(j in affine for j in node.inputs):
            affine.add(i)
    return frozenset(affine)


def sign_unknown(op: Activation, low: Tensor, high: Tensor) -> Tensor:
    """Neurons (B, *shape) whose function on [low, high] has a corner inside."""
    unknown = (low < 0) & (high > 0)
    return unknown if op.bends is None else unknown & op.bends


def _is_loose(op: Op, low: Tensor, high: Tensor) -> Tensor:
    """Where a tighter interval changes the lines of an activation or a max pool."""
    return sign_unknown(op, low, high) if isinstance(op, Activation) else low < high


def _of_activations(graph: Graph, i: int) -> bool:
    """Whether a node holds activations, whose boxes a backward pass leaves as they are."""
    node = graph.nodes[i]
    if isinstance(node.op, (Concat, Flatten)):
        return all(_of_activations(graph, j) for j in node.inputs)
    return isinstance(node.op, NONLINEAR)
