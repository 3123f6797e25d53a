"""Layers before the first activation: exact linear functions of the input, whatever the ball."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from greg_cert.verify.bounds.crown import RelaxedNetwork, backward_rows, neuron_rows
from greg_cert.verify.bounds.linear_bound import ROUNDING
from greg_cert.verify.bounds.region import Region
from greg_cert.verify.bounds.window_plan import WindowPlan
from greg_cert.verify.bounds.windows import WindowPass
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.norms import dual_norm


class AffineRows:
    """Bounds of affine nodes from lengths of their rows, which are found once for all balls.

    Args:
        graph: the network.
        elements: largest number of elements of one coefficient tensor.
    """

    def __init__(self, graph: Graph, elements: int) -> None:
        self._graph, self._elements = graph, elements
        self._lengths: dict[tuple[int, float], Tensor] = {}

    def bounds(
        self, target: int, region: Region, terms: Mapping[int, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """(lower, upper) of an affine node over each region, (B, N) each; in ℓ∞ without a cut only.

        The absolute `terms` of affine nodes are for the rounding; None in float32.
        """
        length = self._row_lengths(target, region.norm)
        centre = self._value(target, region.inputs).flatten(1)
        allowed = torch.zeros_like(centre)
        if terms is not None:
            share = ROUNDING * torch.finfo(centre.dtype).eps
            allowed = share * terms[target].flatten(1)
        above = below = None
        if region.cut is not None:
            shape = (-1, *self._graph.input_shape)
            start = torch.zeros_like(region.inputs[:1])
            moved = self._value(target, region.cut.normal.reshape(shape))
            tiny = torch.finfo(centre.dtype).tiny
            cosine = (moved - self._value(target, start)).flatten(1) / length.clamp_min(tiny)
            # Biases cancel in the difference, but not their rounding.
            unsure = allowed / length.clamp_min(tiny)
            below, above = cosine + unsure, -cosine + unsure
        low = region.lowest_by_cosine(centre - allowed, length, below)
        high = -region.lowest_by_cosine(-centre - allowed, length, above)
        return low, high

    def _value(self, target: int, inputs: Tensor) -> Tensor:
        """Value (B, *shape) of the node."""
        nodes, values = dict(self._graph.computed), {0: inputs}

        def at(i: int) -> Tensor:
            if i not in values:
                values[i] = nodes[i].op.apply(*[at(j) for j in nodes[i].inputs])
            return values[i]

        return at(target)

    def _row_lengths(self, target: int, norm: float) -> Tensor:
        """Dual norms (N,) of the rows of the node's linear map."""
        key = (target, norm)
        if key not in self._lengths:
            graph = self._graph
            indices = torch.arange(math.prod(graph.nodes[target].shape), device=graph.device)
            plan, network = WindowPlan.of(graph, target), RelaxedNetwork(graph, {})
            widest = max(math.prod(n.shape) for n in graph.nodes)
            parts = []
            if plan is not None:
                widest = 2 * plan.elements
                centre = torch.zeros(1, *graph.input_shape, dtype=graph.dtype, device=graph.device)
                windows = WindowPass(plan, network, Region(centre, centre.new_zeros(1), norm))
            for chunk in indices.split(max(1, self._elements // widest)):
                if plan is not None:
                    parts.append(windows.lengths(chunk.unsqueeze(0)).squeeze(0))
                    continue
                start, rows, _ = neuron_rows(graph, target, chunk.unsqueeze(0))
                slope = backward_rows(network, start, rows)[0]
                parts.append(dual_norm(slope.squeeze(0), norm))
            self._lengths[key] = torch.cat(parts)
        return self._lengths[key]
