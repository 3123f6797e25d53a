"""What bounds of a graph take in memory, about."""

from __future__ import annotations

import math

from greg_cert.verify.graph.ops import Graph

_COPIES = 6  # of a sample's bounds and coefficients that live at once


def sample_bytes(graph: Graph, rows: int) -> int:
    """About how many bytes one sample takes in float64, with `rows` rows of the logits."""
    nodes = sum(math.prod(n.shape) for n in graph.nodes)
    return 8 * _COPIES * (nodes * (2 + rows) + 3 * rows * graph.num_classes)


def fitting_batch(graph: Graph, batch: int, memory: int | None, rows: int) -> int:
    """Samples at a time: `batch`, or fewer where a budget of bytes would not hold them."""
    if memory is None:
        return batch
    return max(1, min(batch, memory // (2 * sample_bytes(graph, rows))))
