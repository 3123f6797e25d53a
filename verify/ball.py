"""What one engine proves about the score on one ball a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.duality import acceptance_radius, improve_row, rejection_radius
from greg_cert.verify.engine import Engine, Relaxation, finite_bounds
from greg_cert.verify.graph import Graph
from greg_cert.verify.lipschitz import LipschitzBound
from greg_cert.verify.scorer import Margin

_SLACK = 1e-9


class BallBounds:
    """Bounds of one graph by one engine, in the floating type of the graph's weights."""

    def __init__(
        self, graph: Graph, engine: Engine, margin: Margin, norm: float, method: str
    ) -> None:
        self._graph, self._engine, self._margin, self._norm = graph, engine, margin, norm
        self._relaxation = "crown-ibp" if method == "crown-ibp" else "crown"
        self._lipschitz = LipschitzBound(graph)

    def reach(
        self, x: Tensor, radii: Tensor, rows: Tensor, mirror_steps: int
    ) -> tuple[Tensor, Tensor]:
        """How far the linear bounds of balls of `radii` (B,) prove the decision.

        Args:
            x: (B, ...) centres, float64.
            radii: (B,) float64.
            rows: (B, K) the probability vectors p to use (for acceptance).
            mirror_steps: how often to improve them first.

        Returns:
            (B,) reach in float64, which may exceed `radii`, and the rows that gave it (B, K).
        """
        dtype = self._graph.dtype
        relaxation = self._engine.relax(x.to(dtype), radii.to(dtype), self._norm, self._relaxation)
        gamma = self._margin.threshold
        if self._margin.side == "ood":
            cap = 2 * radii.to(dtype)
            reach = rejection_radius(relaxation, self._graph.num_classes, gamma, cap)
            return _void(reach, relaxation), rows
        p = _normalised(rows.to(dtype))
        reach = acceptance_radius(relaxation, p, gamma)
        if mirror_steps:
            better = improve_row(relaxation, p, mirror_steps)
            tried = acceptance_radius(relaxation, better, gamma)
            p = torch.where((tried > reach).unsqueeze(1), better, p)
            reach = torch.maximum(reach, tried)
        return _void(reach, relaxation), p.double()

    def lipschitz(self, x: Tensor, radii: Tensor) -> Tensor:
        """L_S (B,) over balls of `radii` (B,) about x (B, ...), in float64."""
        dtype = self._graph.dtype
        relaxation = self._engine.relax(x.to(dtype), radii.to(dtype), self._norm, self._relaxation)
        return self._lipschitz(relaxation, x.to(dtype), self._norm).double()


def _void(reach: Tensor, relaxation: Relaxation) -> Tensor:
    return torch.where(finite_bounds(relaxation), reach.double(), 0.0).nan_to_num(nan=0.0)


def first_order_reach(constant: Tensor, gap: Tensor, rounding: Tensor) -> Tensor:
    """Distance (B,) within which a score of slope ≤ `constant` cannot use up `gap`, (B,) each.

    `rounding` (B,) bounds the rounding of the gap.
    """
    left = gap - _SLACK * (1 + gap.abs()) - rounding
    return torch.where(left > 0, left / constant, torch.zeros_like(gap)).nan_to_num(nan=0.0)


def _normalised(p: Tensor) -> Tensor:
    p = p.clamp_min(0.0)
    return p / p.sum(1, keepdim=True)
