"""Radii for the price of a forward pass: (γ − S)/L̄ with the constant of the whole space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError
from greg_cert.runs.inference import evaluation_copy
from greg_cert.scores import score_of
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz.forward_error import ForwardError
from greg_cert.verify.lipschitz.global_bound import global_constant
from greg_cert.verify.memory import in_chunks
from greg_cert.verify.norms import check_norm, check_radius
from greg_cert.verify.scorer import Margin, check_inputs

_SLACK = 1e-9
_BATCH = 128
_SHARES = {torch.float64: 1e-8, torch.float32: 1e-3}  # by which a model may differ from its graph


def first_order_reach(constant: Tensor | float, gap: Tensor, rounding: Tensor) -> Tensor:
    """Distance (B,) within which a score of slope ≤ `constant` cannot use up `gap`, (B,) each.

    `rounding` (B,) bounds the rounding of the gap.
    """
    left = gap_left(gap, rounding)
    return torch.where(left > 0, left / constant, torch.zeros_like(gap)).nan_to_num(nan=0.0)


def gap_left(gap: Tensor, rounding: Tensor) -> Tensor:
    """What of a gap (B,) is left for certain."""
    return gap - _SLACK * (1 + gap.abs()) - rounding


def score_error(graph: Graph, logits: Tensor, off: Tensor) -> Tensor:
    """What a score (B,), computed in float64, may be off by where each logit is by `off` (B,).

    No score here moves by more than twice what all of its logits move by.
    """
    unit = (graph.num_classes + 8) * torch.finfo(torch.float64).eps
    return 2 * off + unit * (1 + logits.abs().amax(1))


@torch.inference_mode(False)
@torch.no_grad()
def global_lipschitz_radius(
    model: nn.Module,
    inputs: Tensor,
    threshold: float,
    *,
    side: str = "id",
    norm: float = 2.0,
    max_radius: float = 1.0,
    score: str = "energy",
    dtype: torch.dtype = torch.float64,
    batch: int = _BATCH,
) -> Tensor:
    """Radii (B,) within which no decision changes: min{max_radius, (γ − S)/L̄}, S ± its rounding.

    The norms of the layers once for a set of weights, then two forward passes a batch: the score by
    the graph that is bounded, and the model, which has to agree with it. What `certify` proves by
    `lipschitz` is at least this.

    Args:
        model: raw images (B, C, H, W) to logits (B, K).
        inputs: (B, C, H, W) raw pixels.
        threshold: γ; accepted as ID iff S(x) ≤ γ.
        side: `id` or `ood`.
        norm: 2 or inf.
        max_radius: radii are capped here, > 0.
        score: one of `greg_cert.scores.SCORES`.
        dtype: what scores are computed in; float32 costs a proven allowance, and is for the CPU.
        batch: samples at once.

    Returns:
        (B,) float64; 0 on the wrong side, or where nothing is certain.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: for a layer that cannot be bounded soundly, or a model that differs
            from the graph at one of the samples.
    """
    margin, value = Margin(float(threshold), side), score_of(score)
    check_norm(norm)
    check_radius("max_radius", max_radius)
    graph = trace_model(model, tuple(inputs.shape[1:]))
    constant = global_constant(graph, score, norm)
    forward, copied = ForwardError(graph, dtype), evaluation_copy(model, dtype)

    def part(rows: slice) -> Tensor:
        x = check_inputs(inputs[rows]).to(graph.device, inputs.dtype)
        logits, off = forward(x)
        theirs = copied(x.to(dtype, copy=True)).double()
        apart = (theirs - logits).abs().amax(1)
        near = apart <= torch.maximum(_SHARES[dtype] * theirs.abs().amax(1), 4 * off)
        if not near.all():
            raise UnsupportedModelError(
                "the model differs from the graph that bounds are about, at the samples (row "
                f"{rows.start + int((~near).nonzero()[0])}): it has a step that tracing does not "
                "see, or its digits cancel"
            )
        scores = value(logits)
        found = first_order_reach(constant, margin.of(scores), score_error(graph, logits, off))
        return torch.where(margin.wrong(scores), 0.0, found).clamp(max=max_radius)

    return torch.cat(list(in_chunks(part, len(inputs), batch)))
