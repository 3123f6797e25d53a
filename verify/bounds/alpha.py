"""Slopes of the lower lines of activations, optimised: α-CROWN.

Source: Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively
Parallel Incomplete Verifiers", ICLR 2021. Projected Adam steps from the slopes that CROWN takes,
moved strictly inside their range first: at the ends a clamp has no gradient on some torch versions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.bounds.moments import Moments
from greg_cert.verify.graph.ops import Activation, Graph

Slopes = dict[int, Tensor]

_RATE = 0.25
_DECAY = 0.85
_INSIDE = 0.05
_MEANS = 0.9, 0.99  # how long Adam's two last


def first_slopes(graph: Graph, bounds: Mapping[int, Interval], count: int) -> Slopes:
    """CROWN's slopes for `count` rows a sample, (B, R, *shape) a node, moved a little inside."""
    slopes = {}
    for i, (low, high) in bounds.items():
        op = graph.nodes[i].op
        if isinstance(op, Activation):
            least = op.negative_slope
            usual = torch.where(high > -low, 1.0 - _INSIDE, _INSIDE).to(low.dtype)
            start = least + (1.0 - least) * usual
            slopes[i] = start.unsqueeze(1).repeat(1, count, *[1] * (low.ndim - 1))
    return slopes


class SlopeAscent:
    """Adam on slopes, each projected back to [negative slope, 1] after every step."""

    def __init__(self, graph: Graph, slopes: Slopes) -> None:
        self._least = {
            i: op.negative_slope
            for i, node in enumerate(graph.nodes)
            if isinstance(op := node.op, Activation)
        }
        self.slopes = slopes
        self._moments = Moments(slopes, *_MEANS)
        self._rates = (_RATE * _DECAY**k for k in itertools.count())

    def leaves(self) -> Slopes:
        """The slopes, to be differentiated by."""
        return {i: s.detach().requires_grad_() for i, s in self.slopes.items()}

    def step(self, gradients: Mapping[int, Tensor | None]) -> None:
        """Move uphill, once."""
        share, rate = self._moments.begin_step(), next(self._rates)
        for i, gradient in gradients.items():
            if gradient is None:
                continue
            mean, size = self._moments.update(i, gradient)
            tiny = torch.finfo(size.dtype).tiny
            moved = self.slopes[i] + rate * (mean / share) / size.clamp_min(tiny)
            self.slopes[i] = moved.clamp(max=1.0).clamp(min=self._least[i])


def best_slopes(
    graph: Graph,
    bounds: Mapping[int, Interval],
    count: int,
    lowest: Callable[[Mapping[int, Tensor]], Tensor],
    steps: int,
) -> tuple[Tensor, Slopes]:
    """The largest lower bounds (B, R) seen in `steps` steps of ascent, and the last slopes.

    Each of the R = `count` rows has slopes of its own, and keeps the best bound it ever had. Those
    of the activations in `bounds` are free.
    """
    ascent = SlopeAscent(graph, first_slopes(graph, bounds, count))
    best: Tensor | None = None
    for step in range(steps + 1):
        leaves = ascent.leaves()
        with torch.enable_grad():
            value = lowest(leaves)
            total = value.sum()
        best = value.detach() if best is None else torch.maximum(best, value.detach())
        if step == steps or not leaves:
            break
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        ascent.step(dict(zip(leaves, found, strict=True)))
    assert best is not None
    return best, ascent.slopes
