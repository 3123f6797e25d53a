"""What a way of proving may cost, in passes, from the sizes of the network alone.

A pass is the work of the network on one sample, forward and back: two for each multiply-add and
each value. Prices are for the most that a search may do; where it ends early it costs less. The
constants are measured on the CPU, on CNNs of 8×8 and 28×28 images; they say what comes first and
where a budget ends, the same on any machine, and not how long that takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from greg_cert.verify.graph.ops import NONLINEAR, Graph

_ROW = 0.4  # passes of a row that is walked back through the whole network, among many others
_STEP = 15.0  # passes of one gradient step of a coupled bound, for each row of the logits
_OTHERS = 3  # rounds of a row that only has to reach as far as another
_OPEN = 1.2  # parts that are open on the average where each is bounded by coupled bounds


@dataclass(frozen=True)
class Price:
    """Passes of a sample: `fixed`, and `a_row` for each row of the logits that decides its goal."""

    fixed: float
    a_row: float = 0.0

    def of(self, rows: int) -> float:
        """For so many rows."""
        return self.fixed + self.a_row * rows


def relaxation(graph: Graph) -> Price:
    """Of one relaxation by CROWN: a row up and down for each neuron behind another activation."""
    work = list(accumulate(_work(graph, i) for i in range(len(graph.nodes))))
    whole = max(work[-1], 1)
    hidden: set[int] = set()  # nodes behind an activation
    neurons = 0.0
    for i, node in enumerate(graph.nodes):
        if any(j in hidden or isinstance(graph.nodes[j].op, NONLINEAR) for j in node.inputs):
            hidden.add(i)
        if isinstance(node.op, NONLINEAR) and node.inputs[0] in hidden:
            neurons += math.prod(node.shape) * work[node.inputs[0]] / whole
    return Price(1 + _ROW * neurons, _ROW)


def balls(graph: Graph, rounds: int) -> Price:
    """Of `rounds` balls by CROWN."""
    one = relaxation(graph)
    return Price(rounds * one.fixed, rounds * one.a_row)


def steps(count: int) -> Price:
    """Of so many gradient steps of a coupled bound."""
    return Price(0.0, _STEP * count)


def rows(rounds: int, steps: int) -> Price:
    """Of a search of one row, and of the others up to where it came."""
    return Price(_STEP * (rounds - _OTHERS) * steps, _STEP * _OTHERS * steps)


def coupled_parts(graph: Graph, balls: int, steps: int, splits: int, part_steps: int) -> Price:
    """Of `balls` that are split so often, with so many gradient steps on each and on each part."""
    parts = 1 + _OPEN * splits
    bounds = relaxation(graph)
    climbs = _STEP * (steps + part_steps * parts)
    return Price(balls * 2 * parts * bounds.fixed, balls * (climbs + 2 * parts * bounds.a_row))


def _work(graph: Graph, i: int) -> int:
    node = graph.nodes[i]
    weight = getattr(node.op, "weight", None)
    multiplied = 0 if weight is None else weight.numel() * math.prod(node.shape[1:])
    return multiplied + math.prod(node.shape)
