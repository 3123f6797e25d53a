"""Bound propagation of our own: per-sample radii, exact ℓ2 in the first layers, chunked memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.affine_rows import AffineRows
from greg_cert.verify.bounds.alpha import best_slopes
from greg_cert.verify.bounds.crown import Lines, RelaxedNetwork, backward_rows, neuron_rows
from greg_cert.verify.bounds.engine import check_method
from greg_cert.verify.bounds.interval import Interval, forward_interval
from greg_cert.verify.bounds.linear_bound import value_at_centre
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import OutputConstraint, Region
from greg_cert.verify.bounds.window_plan import WindowPlan
from greg_cert.verify.bounds.windows import WindowPass
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import NONLINEAR, Activation, Affine, Concat, Flatten, Graph, Op
from greg_cert.verify.graph.rounding import absolute_terms

_ELEMENTS = 2**19  # of one coefficient tensor (B, R, widest layer): what stays in a CPU's cache
_TENSORS = 8  # of that size that live at once
_CONTRADICTION = 1e-9  # by how much a lower bound must exceed an upper one, relative
_ALPHA_STEPS = 10


class NativeEngine:
    """CROWN, CROWN-IBP or α-CROWN on the canonical graph.

    Args:
        graph: the network.
        memory: bytes that the coefficients may take; 1 GiB where it is not given.
    """

    name = "native"
    methods: tuple[str, ...] = ("crown", "crown-ibp", "alpha-crown")

    def __init__(self, graph: Graph, memory: int | None = None) -> None:
        self.graph = graph
        self.widest = max(torch.Size(n.shape).numel() for n in graph.nodes)
        self.affine = _affine_nodes(graph)
        size = torch.finfo(graph.dtype).bits // 8
        self.elements = _ELEMENTS if memory is None else max(1, memory // (size * _TENSORS))
        self.rows = AffineRows(graph, self.elements)
        self._plans: dict[int, WindowPlan | None] = {}

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> NativeRelaxation:
        """See `Engine.relax`."""
        return self.relax_region(Region(inputs, radii, norm), method)

    def relax_region(
        self,
        region: Region,
        method: str = "crown",
        *,
        outer: NativeRelaxation | None = None,
        constraint: OutputConstraint | None = None,
    ) -> NativeRelaxation:
        """See `RegionEngine.relax_region`."""
        check_method(self, method)
        with torch.no_grad():
            found = _Boxes(self, region, method, constraint)
            found.walk(outer)
        return NativeRelaxation(
            self.graph,
            found.boxes,
            found.terms(),
            lines=found.lines,
            region=region,
            empty=found.empty,
            optimise=method == "alpha-crown",
            elements=self.elements,
        )

    def windows(self, target: int) -> WindowPlan | None:
        """Windows for the neurons of a node; None where rows are whole maps."""
        if target not in self._plans:
            self._plans[target] = WindowPlan.of(self.graph, target)
        return self._plans[target]


class _Boxes:
    """The boxes of what activations read over one region, found layer by layer."""

    def __init__(
        self, engine: NativeEngine, region: Region, method: str, constraint: OutputConstraint | None
    ) -> None:
        self._engine, self._graph = engine, engine.graph
        self._region, self._method, self._constraint = region, method, constraint
        self.boxes: dict[int, Interval] = {}
        self.lines: dict[int, Lines] = {}
        self.empty = region.radii.new_zeros(len(region.radii), dtype=torch.bool)

    def terms(self) -> dict[int, Tensor] | None:
        """Absolute terms of affine nodes; None in float32, which only guides a search."""
        if self._graph.dtype != torch.float64:
            return None
        return absolute_terms(self._graph, self.boxes, self._region.inputs, self._region.radii)

    def walk(self, outer: NativeRelaxation | None) -> None:
        """Find them, within those of `outer` where there are some."""
        inputs = self._region.inputs
        if outer is not None:
            self.boxes, self.lines = dict(outer.preactivations), dict(outer.lines)
            self.empty |= outer.empty
        ball = self._region.radii.reshape(-1, *[1] * (inputs.ndim - 1))
        intervals: list[Interval] = [(inputs - ball, inputs + ball)]
        for i, node in self._graph.computed:
            source = node.inputs[0]
            if isinstance(node.op, NONLINEAR):
                interval = intervals[source]
                if i in self.boxes:  # of `outer`; nodes before this one hold those of this region
                    (low, high), (least, most) = interval, self.boxes[i]
                    interval = torch.maximum(low, least), torch.minimum(high, most)
                settled = isinstance(node.op, MaxPool) and _of_activations(self._graph, source)
                if not settled and (self._method != "crown-ibp" or source in self._engine.affine):
                    interval = self._tightened(source, interval, node.op)
                intervals[source], contradiction = _ordered(interval)
                self.boxes[i] = intervals[source]
                self.lines.pop(i, None)
                self.empty |= contradiction
            intervals.append(forward_interval(node.op, [intervals[j] for j in node.inputs]))

    def _tightened(self, target: int, interval: Interval, reader: Op) -> Interval:
        """The interval of a node, intersected with CROWN's where that is of use to its reader."""
        node, region, engine = self._graph.nodes[target], self._region, self._engine
        low, high = interval[0].flatten(1).clone(), interval[1].flatten(1).clone()
        unknown = _is_loose(reader, *interval).flatten(1)
        network = RelaxedNetwork(self._graph, self.boxes, self.terms(), lines=self.lines)
        shared = target in engine.affine  # without an activation before it, one slope serves all
        if shared and isinstance(node.op, Affine) and (region.cut is None or region.norm == 2.0):
            below, above = engine.rows.bounds(target, region, network.terms)
            if isinstance(reader, Activation) and reader.bends is not None:  # these cost nothing
                unknown = unknown | ~reader.bends.expand(node.shape).flatten()
            low = torch.where(unknown, torch.maximum(low, below), low)
            high = torch.where(unknown, torch.minimum(high, above), high)
            return low.unflatten(1, node.shape), high.unflatten(1, node.shape)
        plan = self._plan(target)
        windows = None if plan is None else WindowPass(plan, network, region)
        widest = engine.widest if plan is None else plan.elements
        for chunk in self._chunks(unknown, shared, widest):
            if windows is not None:
                bound = windows.lowest(chunk)
            else:
                bound = self._lowest(network, target, chunk)
            below, above = bound.split(chunk.shape[1], dim=1)
            chunk = chunk.expand(len(low), -1)
            # Only where it is of use to the sample itself: no sample's bounds depend on its batch.
            own_low, own_high = low.gather(1, chunk), high.gather(1, chunk)
            own = unknown.gather(1, chunk)
            low.scatter_(1, chunk, torch.where(own, torch.maximum(own_low, below), own_low))
            high.scatter_(1, chunk, torch.where(own, torch.minimum(own_high, -above), own_high))
        return low.unflatten(1, node.shape), high.unflatten(1, node.shape)

    def _lowest(self, network: RelaxedNetwork, target: int, indices: Tensor) -> Tensor:
        """Lower bounds (B, 2R) of the neurons (B or 1, R) of a node and of their negatives."""
        region, constraint = self._region, self._constraint
        start, rows, added = neuron_rows(self._graph, target, indices)
        rows, added = torch.cat([rows, -rows], 1), torch.cat([added, -added], 1)
        own = added.abs()  # absolute terms of the layer that was stepped over
        if network.terms is not None and start != target:
            own = network.terms[target].flatten(1)
            own = own.gather(1, indices.expand(len(region.inputs), -1)).repeat(1, 2)
        affine = target in self._engine.affine
        if not affine:
            rows = rows.expand(len(region.inputs), *rows.shape[1:])

        def lowest(slopes: Mapping[int, Tensor] | None) -> tuple[Tensor, Tensor]:
            slope, offset, size = backward_rows(replace(network, slopes=slopes), start, rows)
            value = value_at_centre(slope, offset + added, size + own, region.inputs)
            return region.lowest(value, slope), slope

        bound, slope = lowest(None)
        if self._method == "alpha-crown" and not affine:
            before = {i: self.boxes[i] for i in self._graph.activations if i <= start}
            count = rows.shape[1]
            best = best_slopes(self._graph, before, count, lambda s: lowest(s)[0], _ALPHA_STEPS)
            bound = torch.maximum(bound, best[0])
        # For an affine node the cut says nearly all of it, at a fraction of the cost.
        if constraint is None or region.cut is None or affine:
            return bound
        # Every violation has row·f + constant < 0, so z ≥ z + λ(row·f + constant) there.
        weight = region.multipliers(slope) / constraint.steepness.unsqueeze(1)
        weight = weight.nan_to_num(nan=0.0, posinf=0.0)
        together = weight.unsqueeze(2) * constraint.row.unsqueeze(1)
        more = {start: rows.expand(len(weight), *rows.shape[1:])}
        last = len(self._graph.nodes) - 1
        slope, offset, size = backward_rows(network, last, together, more)
        added = added + weight * constraint.constant.unsqueeze(1)
        value = value_at_centre(slope, offset + added, size + own + added.abs(), region.inputs)
        return torch.maximum(bound, region.lowest(value, slope))

    def _plan(self, target: int) -> WindowPlan | None:
        """Windows for the neurons of a node, where its rows need not be whole maps."""
        region = self._region
        if region.cut is not None and (region.norm != 2.0 or self._constraint is not None):
            return None  # multipliers need whole slopes
        if self._method == "alpha-crown":
            return None  # each row has slopes of its own
        return self._engine.windows(target)

    def _chunks(self, unknown: Tensor, shared: bool, widest: int) -> Iterator[Tensor]:
        """Indices of neurons of unknown sign, (1, R) for all samples or (B, R) for each its own.

        Samples with fewer than the most are filled up with other neurons.
        """
        if shared:
            indices = unknown.any(0).nonzero().squeeze(1).unsqueeze(0)
        else:
            most = int(unknown.sum(1).max())
            indices = unknown.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        size = max(1, self._engine.elements // (2 * len(indices) * widest))
        return iter(indices.split(size, dim=1)) if indices.shape[1] else iter(())


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
    for i, node in graph.computed:
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
