"""How far a score can go inside given balls, proven."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.runs.inference import device_of
from greg_cert.scores import SCORES
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.bounds.engine import Engine, finite_bounds
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.graph.ops import Graph, forward_all
from greg_cert.verify.graph.sizes import fitting_batch
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.memory import in_chunks
from greg_cert.verify.norms import check_norm, check_radius
from greg_cert.verify.radius.chord import upper_value
from greg_cert.verify.radius.duality import first_weights, improve_weights, lower_value
from greg_cert.verify.radius.goals import decision_goal
from greg_cert.verify.scorer import SIDES, Margin, check_inputs, logit_function

_MIRROR_STEPS = 5
_BATCH = 128


@torch.inference_mode(False)
def score_bound(
    model: nn.Module,
    inputs: Tensor,
    radius: float,
    *,
    side: str = "ood",
    norm: float = 2.0,
    score: str = "energy",
    engine: str = "auto",
    method: str = "crown",
    memory: float | None = None,
) -> Tensor:
    """Proven bound of S over the whole ball about each input: the least (`ood`) or most (`id`).

    With side `ood` S(x′) ≥ the bound, which GAUC takes for a perturbed OOD sample; with side `id`
    S(x′) ≤ the bound. Infinite where nothing could be proven.

    Args:
        model: raw images (B, C, H, W) to logits (B, K); evaluated in float64, eval mode.
        inputs: (B, C, H, W) raw pixels.
        radius: of the ball, > 0, not clipped to [0, 1].
        side: `ood` or `id`.
        norm: 2 or inf.
        score: one of `greg_cert.scores.SCORES`.
        engine: `auto`, `native` or `auto-lirpa`.
        method: `crown`, `crown-ibp`, `sdp-crown` (norm 2) or, native alone, `alpha-crown`.
        memory: budget in GiB.

    Returns:
        (B,) in the unit of the score.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: for a layer that cannot be bounded soundly.
    """
    x = check_inputs(inputs).to(device_of(model))
    check_norm(norm)
    check_radius("radius", radius)
    if side not in SIDES:
        raise UsageError(f"expected side 'id' or 'ood', but got {side!r}")
    if score not in SCORES:
        raise UsageError(f"expected score in {', '.join(SCORES)}, but got {score!r}")
    graph = trace_model(model, tuple(x.shape[1:]), whole_pools=method == "sdp-crown")
    check_agreement(logit_function(model), graph, x, "the samples")
    return ScoreBounds(graph, engine, side, norm, score, method, memory)(x, radius)


class ScoreBounds:
    """`score_bound` of one graph, which is known to be the model at the inputs that are given.

    Arguments as of `score_bound`; engines are made once.
    """

    def __init__(
        self,
        graph: Graph,
        engine: str,
        side: str,
        norm: float,
        score: str,
        method: str = "crown",
        memory: float | None = None,
    ) -> None:
        self.graph, self._norm, self._score, self._method = graph, norm, score, method
        self._relative = SCORES[score].relative
        # Levels of 0, so that the goals' own values are what is bounded.
        self._margin = Margin(-1.0 if self._relative else 0.0, side)
        self._budget = None if memory is None else int(memory * 2**30)
        self._engine: Engine = (
            CoupledEngine(graph)
            if method == "sdp-crown"
            else make_engine(engine, graph, self._budget)
        )

    def __call__(self, x: Tensor, radius: float) -> Tensor:
        """Bounds (B,) on balls of one radius about x (B, ...), in float64 on the graph's device."""
        batch = fitting_batch(self.graph, _BATCH, self._budget, self.graph.num_classes)
        parts = in_chunks(lambda rows: self._bound(x[rows], radius), len(x), batch)
        return torch.cat(list(parts))

    @torch.no_grad()
    def _bound(self, x: Tensor, radius: float) -> Tensor:
        logits = forward_all(self.graph, x)[-1]
        goal = decision_goal(self._score, self._margin, logits)
        radii = torch.full_like(logits[:, 0], radius)
        relaxation = self._engine.relax(x, radii, self._norm, self._method)
        if goal.above:
            weights = improve_weights(relaxation, goal, first_weights(goal, logits), _MIRROR_STEPS)
            values = lower_value(relaxation, goal, weights)  # (B, G)
        else:
            values = upper_value(relaxation, goal).unsqueeze(1)
        sign = self._margin.sign
        if self._relative:  # S = −max exp(−logsumexp(f − f_k))
            bound = (-(-values).exp().clamp(max=1.0)).amin(1) + sign * 1e-12
        else:
            bound = -values.squeeze(1)
        nothing = sign * math.inf
        return torch.where(finite_bounds(relaxation), bound, nothing).nan_to_num(
            nan=nothing, posinf=math.inf, neginf=-math.inf
        )
