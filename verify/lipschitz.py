"""Proven local Lipschitz constants of the energy score (DESIGN §5, the paper's L_S)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greg_cert.verify.adjoint_interval import adjoint_boxes
from greg_cert.verify.engine import Relaxation, finite_bounds, make_engine
from greg_cert.verify.graph import Graph, Linear, Smooth
from greg_cert.verify.local_lipschitz import NodeSlopes
from greg_cert.verify.norms import check_norm, check_radius, dual_norm
from greg_cert.verify.scorer import check_inputs
from greg_cert.verify.smooth import crosses_jump
from greg_cert.verify.trace import trace_model

_SLACK = 1e-9  # relative; float64 rounding through a network stays far below


def lipschitz_bound(
    model: nn.Module,
    inputs: Tensor,
    radius: float,
    *,
    norm: float = 2.0,
    engine: str = "auto",
    method: str = "crown",
) -> Tensor:
    """Upper bound L of ‖∇S‖* over the whole ball about each input, so |S(x′)−S(x)| ≤ L‖x′−x‖.

    The smallest, over all nodes that every path passes, of (interval bound of the score's gradient
    at the node) × (masked operator norms from the input to the node).

    Args:
        model: raw images (B, C, H, W) to logits (B, K); evaluated in float64, eval mode.
        inputs: (B, C, H, W) raw pixels.
        radius: of the ball, > 0, not clipped to [0, 1].
        norm: norm of perturbations, 2 or inf; the gradient is measured in its dual.
        engine: which bound propagation gives the pre-activation bounds.
        method: `crown`, or `crown-ibp` (faster, looser).

    Returns:
        (B,) in score units per pixel unit.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: for a layer that cannot be bounded soundly.
    """
    x = check_inputs(inputs)
    check_norm(norm)
    check_radius("radius", radius)
    graph = trace_model(model, tuple(x.shape[1:]))
    radii = torch.full((len(x),), float(radius), dtype=x.dtype, device=x.device)
    relaxation = make_engine(engine, graph).relax(x, radii, norm, method)
    return LipschitzBound(graph)(relaxation, x, norm)


class LipschitzBound:
    """L_S of one graph for any number of relaxations; keeps what does not depend on the ball."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._slopes = NodeSlopes(graph)
        self._separators = separators(graph)

    @torch.no_grad()
    def __call__(self, relaxation: Relaxation, inputs: Tensor, norm: float) -> Tensor:
        """(B,) bounds over the balls for which `relaxation` was made about `inputs`."""
        graph, bounds = self._graph, relaxation.preactivations
        boxes = adjoint_boxes(graph, bounds, logit_bounds(relaxation, inputs, graph.num_classes))
        slopes = self._slopes(bounds, inputs, norm)
        best = torch.full((len(inputs),), torch.inf, dtype=inputs.dtype, device=inputs.device)
        for i in self._separators:
            low, high = boxes[i]
            adjoint = torch.maximum(low.abs(), high.abs()) * slopes[i].mask
            best = torch.minimum(best, dual_norm(adjoint, norm) * slopes[i].constant)
        head = graph.nodes[-1]
        if isinstance(head.op, Linear) and head.inputs[0] in self._separators:
            # ∇S is a convex combination of logit gradients, so the longest row bounds it.
            source = slopes[head.inputs[0]]
            longest = torch.stack(
                [dual_norm(row * source.mask, norm) for row in head.op.weight]
            ).amax(0)
            best = torch.minimum(best, longest * source.constant)
        sure = finite_bounds(relaxation) & ~self._may_jump(relaxation)
        return torch.where(sure, best * (1 + _SLACK), torch.inf)

    def _may_jump(self, relaxation: Relaxation) -> Tensor:
        """Samples (B,) for which a function in the network is not continuous over the ball."""
        found = torch.tensor(False, device=self._graph.device)
        for i, (low, high) in relaxation.preactivations.items():
            op = self._graph.nodes[i].op
            if isinstance(op, Smooth):
                found = found | crosses_jump(op.kind, low, high).flatten(1).any(1)
        return found


def logit_bounds(relaxation: Relaxation, inputs: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(lower, upper) of the logits over each ball, (B, K) each."""
    eye = torch.eye(num_classes, dtype=inputs.dtype, device=inputs.device)
    rows = torch.cat([eye, -eye]).expand(len(inputs), -1, -1)
    low, negative_high = relaxation.lower(rows).split(num_classes, dim=1)
    return low, -negative_high


def separators(graph: Graph) -> tuple[int, ...]:
    """Nodes that lie on every path from the input to the logits, in order."""
    last = len(graph.nodes) - 1
    readers = graph.consumers()
    before, after = [0] * (last + 1), [0] * (last + 1)
    before[0] = after[last] = 1
    for i in range(1, last + 1):
        before[i] = sum(before[j] for j in graph.nodes[i].inputs)
    for i in range(last - 1, -1, -1):
        after[i] = sum(after[j] for j in readers[i])
    return tuple(i for i in range(last + 1) if before[i] * after[i] == before[last])
