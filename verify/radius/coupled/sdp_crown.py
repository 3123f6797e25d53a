"""The method `sdp-crown`: one multiplier a layer, then one a neuron, then balls that are split."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.certificates.certify_methods import L2_ONLY
from greg_cert.errors import UsageError
from greg_cert.verify.bounds.coupled.ball_boxes import layer_norms
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.radius.coupled.one_ball import CoupledEffort, CoupledRadius
from greg_cert.verify.radius.coupled.parts import CoupledParts, PartsEffort
from greg_cert.verify.radius.coupled.rows import CoupledRows
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.linear import Ladder, LinearRadius


def ball_radius(graph: Graph, draft: Graph, max_radius: float, ladder: Ladder) -> LinearRadius:
    """Proven ℓ2 radii by one multiplier a layer, for any goal."""
    norms = layer_norms(graph)  # those of the draft would be found anew, and only scout
    return LinearRadius(
        graph,
        draft,
        CoupledEngine(graph, norms),
        "sdp-crown",
        2.0,
        max_radius,
        ladder,
        scouts=lambda graph, memory: CoupledEngine(graph, norms),
    )


class SdpCrownRadius:
    """Proven ℓ2 radii of one graph by coupled bounds.

    Raises:
        UsageError: for another norm than 2.
    """

    def __init__(
        self,
        graph: Graph,
        draft: Graph,
        norm: float,
        max_radius: float,
        ladder: Ladder,
        effort: CoupledEffort,
    ) -> None:
        if norm != 2.0:
            raise UsageError(L2_ONLY)
        self._balls = ball_radius(graph, draft, max_radius, ladder)
        one = CoupledRadius(graph, draft, max_radius, effort)
        self._rows = CoupledRows(one)
        self._parts: CoupledParts | None = None
        if effort.splits and CoupledParts.suits(graph):
            self._parts = CoupledParts(one, PartsEffort(splits=effort.splits))

    def __call__(
        self,
        x: Tensor,
        logits: Tensor,
        goal: Goal,
        first_order: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Radii (B,) within which `goal` is proven to hold; arguments as of `LinearRadius`."""
        radii = self._balls(x, logits, goal, first_order, known)
        known = radii if known is None else torch.maximum(radii, known)
        radii = self._rows(x, logits, goal, first_order, known)
        if self._parts is not None and goal.one_row:
            radii = self._parts(x, logits, goal, first_order, radii)
        return radii
