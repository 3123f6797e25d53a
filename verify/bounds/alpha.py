"""Slopes of the lower lines of activations, optimised: α-CROWN.

Source: Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively
Parallel Incomplete Verifiers", ICLR 2021. Projected Adam steps from the slopes that CROWN takes,
moved strictly inside their range first: at the ends a clamp has no gradient on some torch versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.graph.ops import Activation, Graph

Slopes = dict[int, Tensor]

_RATE = 0.25
_DECAY = 0.85
_INSIDE = 0.05
_FIRST, _SECOND = 0.9, 0.99  # Adam's two means


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
        self._mean = {i: torch.zeros_like(s) for i, s in slopes.items()}
        self._square = {i: torch.zeros_like(s) for i, s in slopes.items()}
        self._done = 0

    def leaves(self) -> Slopes:
        """The slopes, to be differentiated by."""
        return {i: s.detach().requires_grad_() for i, s in self.slopes.items()}

    def step(self, gradients: Mapping[int, Tensor | None]) -> None:
        """Move uphill, once."""
        self._done += 1
        rate = _RATE * _DECAY ** (self._done - 1)
        for i, gradient in gradients.items():
            if gradient is None:
                continue
            self._mean[i].mul_(_FIRST).add_(gradient, alpha=1 - _FIRST)
            self._square[i].mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
            mean = self._mean[i] / (1 - _FIRST**self._done)
            size = (self._square[i] / (1 - _SECOND**self._done)).sqrt()
            tiny = torch.finfo(size.dtype).tiny
            moved = self.slopes[i] + rate * mean / size.clamp_min(tiny)
            self.slopes[i] = moved.clamp(max=1.0).clamp(min=self._least[i])


def best_slopes(
    graph: Graph,
    bounds: Mapping[int, Interval],
    count: int,
    lowest: Callable[[Mapping[int, Tensor]], Tensor],
    steps: int,
) -> tuple[Tensor, Slopes]:
    """The largest lower bounds (B, R) seen in `steps` steps of ascent, and the last slopes.

    Each row has slopes of its own, and keeps the best bound it ever had.

    Args:
        graph: the network.
        bounds: pre-activations of the activation nodes whose slopes are free.
        count: R.
        lowest: slopes to lower bounds (B, R).
        steps: gradient steps.
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
