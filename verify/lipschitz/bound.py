"""Proven local Lipschitz constants of the energy score, the paper's L_S."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.runs.inference import device_of
from greg_cert.scores import SCORES
from greg_cert.verify.bounds.engine import Relaxation, finite_bounds
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.graph.ops import Graph, Linear, Smooth
from greg_cert.verify.graph.smooth import crosses_jump
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz.adjoint_interval import adjoint_boxes
from greg_cert.verify.lipschitz.global_bound import global_constant
from greg_cert.verify.lipschitz.local_lipschitz import NodeSlopes
from greg_cert.verify.lipschitz.score_box import score_box
from greg_cert.verify.norms import check_norm, check_radius, dual_norm
from greg_cert.verify.scorer import check_inputs, logit_function

FORMS = ("hybrid", "interval", "spectral")

_SLACK = 1e-9  # relative; float64 rounding through a network stays far below


@torch.inference_mode(False)
def lipschitz_bound(
    model: nn.Module,
    inputs: Tensor,
    radius: float | Sequence[float],
    *,
    norm: float = 2.0,
    engine: str = "auto",
    method: str = "crown",
    score: str = "energy",
    form: str = "hybrid",
) -> Tensor:
    """Upper bound L of ‖∇S‖* over the whole ball about each input, so |S(x′)−S(x)| ≤ L‖x′−x‖.

    The smallest, over all nodes that every path passes, of (interval bound of the score's gradient
    at the node) × (masked operator norms from the input to the node), and never above what holds
    everywhere (`global_lipschitz_bound`).

    Args:
        model: raw images (B, C, H, W) to logits (B, K); evaluated in float64, eval mode.
        inputs: (B, C, H, W) raw pixels.
        radius: of the ball, > 0, not clipped to [0, 1]; or several.
        norm: norm of perturbations, 2 or inf; the gradient is measured in its dual.
        engine: which bound propagation gives the pre-activation bounds.
        method: `crown`, or `crown-ibp` (faster, looser).
        score: one of `greg_cert.scores.SCORES`.
        form: `interval`, the interval backward pass to the input; `spectral`, the masked product of
            operator norms; `hybrid`, the smallest over all cuts between the two, which includes
            both.

    Returns:
        (B,) in score units per pixel unit; (B, R) for several radii. What holds on a ball holds on
        those within it, so of several radii each takes the smallest bound of those not below it:
        the bounds never fall while the radius grows, as they may from one call to another.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: for a layer that cannot be bounded soundly.
    """
    x = check_inputs(inputs).to(device_of(model))
    check_norm(norm)
    several = isinstance(radius, Sequence)
    values = list(radius) if isinstance(radius, Sequence) else [radius]
    if not values:
        raise UsageError("expected radius > 0, or several, but got none")
    for value in values:
        check_radius("radius", value)
    graph = trace_model(model, tuple(x.shape[1:]))
    check_agreement(logit_function(model), graph, x, "the samples")
    made, bound = make_engine(engine, graph), LipschitzBound(graph, score)
    everywhere, columns = global_constant(graph, score, norm), []
    for value in values:
        radii = torch.full((len(x),), float(value), dtype=x.dtype, device=x.device)
        found = bound(made.relax(x, radii, norm, method), x, norm, form)
        columns.append(found.clamp(max=everywhere))
    if not several:
        return columns[0]
    found = torch.stack(columns, 1)  # (B, R)
    order = torch.tensor(values, device=x.device).argsort(stable=True, descending=True)
    found[:, order] = found[:, order].cummin(1).values
    return found


class LipschitzBound:
    """L_S of one graph for any number of relaxations; keeps what does not depend on the ball."""

    def __init__(self, graph: Graph, score: str = "energy") -> None:
        if score not in SCORES:
            raise UsageError(f"expected score in {', '.join(SCORES)}, but got {score!r}")
        self._graph, self._score = graph, score
        self._slopes = NodeSlopes(graph)
        self._separators = separators(graph)

    @torch.no_grad()
    def __call__(
        self, relaxation: Relaxation, inputs: Tensor, norm: float, form: str = "hybrid"
    ) -> Tensor:
        """(B,) bounds over the balls for which `relaxation` was made about `inputs`."""
        check_form(form)
        graph, bounds = self._graph, relaxation.preactivations
        top = score_box(self._score, *logit_bounds(relaxation, inputs, graph.num_classes))
        slopes = self._slopes(bounds, inputs, norm)
        boxes = adjoint_boxes(graph, bounds, top)
        best = torch.full((len(inputs),), torch.inf, dtype=inputs.dtype, device=inputs.device)
        nodes = {"interval": (0,), "spectral": (len(graph.nodes) - 1,)}.get(form, self._separators)
        for i in nodes:
            low, high = boxes[i]
            adjoint = torch.maximum(low.abs(), high.abs()) * slopes[i].mask
            best = torch.minimum(best, dual_norm(adjoint, norm) * slopes[i].constant)
        head = graph.nodes[-1]
        if (
            form != "interval"
            and isinstance(head.op, Linear)
            and head.inputs[0] in self._separators
        ):
            source = slopes[head.inputs[0]]
            longest = top.longest(head.op.weight, source.mask, norm)
            best = torch.minimum(best, longest * source.constant)
        sure = finite_bounds(relaxation) & ~best.isnan() & ~self._may_jump(relaxation)
        return torch.where(sure, best * (1 + _SLACK), torch.inf)

    def _may_jump(self, relaxation: Relaxation) -> Tensor:
        """Samples (B,) for which a function in the network is not continuous over the ball."""
        found = torch.tensor(False, device=self._graph.device)
        for i, (low, high) in relaxation.preactivations.items():
            op = self._graph.nodes[i].op
            if isinstance(op, Smooth):
                found = found | crosses_jump(op.kind, low, high).flatten(1).any(1)
        return found


def check_form(form: str) -> str:
    """A form of the bound as given, else `UsageError`."""
    if form not in FORMS:
        raise UsageError(f"expected form in {', '.join(FORMS)}, but got {form!r}")
    return form


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
