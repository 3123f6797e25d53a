"""What auto-LiRPA's backward bounds may lose in float64, measured by a pass of our own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from greg_cert.verify.bounds.crown import RelaxedNetwork, backward_rows, neuron_rows
from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.bounds.linear_bound import rounding_at_centre
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.rounding import absolute_terms

_ELEMENTS = 2**22  # of one coefficient tensor


@torch.no_grad()
def node_rounding(
    graph: Graph, known: Mapping[int, Interval], target: int, inputs: Tensor, radii: Tensor
) -> tuple[Tensor, Tensor]:
    """How far CROWN's lower and upper bounds of the node `target` may be off, (B, *shape) each.

    The inputs of all activations before it are bounded by `known`, over balls of `radii` (B,).
    """
    shape = graph.nodes[target].shape
    terms = absolute_terms(graph, known, inputs, radii)
    network = RelaxedNetwork(graph, known, terms)
    widest = max(math.prod(n.shape) for n in graph.nodes)
    indices = torch.arange(math.prod(shape), device=inputs.device).unsqueeze(0)
    parts: list[list[Tensor]] = [[], []]
    for chunk in indices.split(max(1, _ELEMENTS // (2 * len(inputs) * widest)), dim=1):
        start, rows, added = neuron_rows(graph, target, chunk)
        own = terms[target].flatten(1)[:, chunk[0]] if start != target else added.abs()
        for signed, found in zip((rows, -rows), parts, strict=True):
            every = signed.expand(len(inputs), *signed.shape[1:])
            slope, offset, size = backward_rows(network, start, every)
            found.append(rounding_at_centre(slope, size + offset.abs() + own, inputs))
    below, above = (torch.cat(found, 1).unflatten(1, shape) for found in parts)
    return below, above
