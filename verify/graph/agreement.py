"""Whether what bounds and attacks are about is the model that runs, compared at given points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph.ops import Graph, forward_all
from greg_cert.verify.graph.rounding import score_rounding
from greg_cert.verify.norms import per_sample
from greg_cert.verify.per_sample import check_rowwise
from greg_cert.verify.scorer import score_and_gradient

Logits = Callable[[Tensor], Tensor]
"""Inputs (B, ...) to logits (B, K), differentiable."""

_SHARE = 1e-8  # relative difference that float64 does not explain
_JITTER = 1e-6  # moves a point off a kink, where a subgradient is a matter of convention
_DRAWS = 3
_STEPS = (1e-5, 1e-6, 1e-7)  # of difference quotients, which a kink spoils at some sizes
_APART = 100.0  # steps from a point, which may be a kink itself, to where the quotient is taken
_QUOTIENT_SHARE, _QUOTIENT_ROUNDING = 1e-2, 1e-13


def check_agreement(logits: Logits, graph: Graph | None, x: Tensor, where: str) -> None:
    """Refuse a model whose values or gradients at x are not those that everything else goes by.

    Each row alone has to get what it gets in its batch. With a graph, both have to be the graph's:
    values at x, gradients beside it, since at a kink itself they are a convention. Without one,
    gradients have to be difference quotients of the values: an attack goes by them.

    Args:
        logits: the model in float64.
        graph: what bounds are about, or None where nothing is bounded.
        x: (B, ...) points.
        where: what they are, for the message.

    Raises:
        UnsupportedModelError: says at which of them.
    """
    check_rowwise(logits, x, "the model")
    with torch.no_grad():
        theirs = logits(x)
        if theirs.ndim != 2 or len(theirs) != len(x) or theirs.shape[1] == 0:
            raise UnsupportedModelError(
                "expected a model that gives logits of shape (B, K) with K >= 1, but got "
                f"{tuple(theirs.shape)} for B = {len(x)}"
            )
        still = theirs if graph is None else forward_all(graph, x)[-1]
    # Of every logit, none of them alike.
    weights = torch.linspace(1.0, 2.0, theirs.shape[1], dtype=theirs.dtype, device=theirs.device)

    def combined(points: Tensor) -> Tensor:
        return (logits(points) * weights).sum(1)

    differs = _differ(graph, x, still, theirs)
    # Also with gradients on, as slopes and attacks run it.
    value, _ = score_and_gradient(combined, x)
    differs |= _differ(graph, x, (theirs * weights).sum(1, keepdim=True), value.unsqueeze(1))
    if differs.any():
        raise UnsupportedModelError(
            f"the model differs from the graph that bounds are about, at {where} (row "
            f"{int(differs.nonzero()[0])}): it has a step that tracing does not see, such as a "
            "hook, an operation in place, a branch on values, or randomness"
        )
    if graph is None:
        blind = ~_is_slope(combined, x)
        instead = "difference quotients of its values"
    else:
        blind = ~_same_slopes(combined, graph, weights, x)
        instead = "the gradients of the graph that bounds are about"
    if blind.any():
        raise UnsupportedModelError(
            f"the model's gradients are not {instead}, at {where} (row {int(blind.nonzero()[0])}), "
            "so slopes and attacks would be blind: part of its forward runs under torch.no_grad, "
            "detaches what it computes, or has a backward pass of its own"
        )


def _differ(graph: Graph | None, x: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Rows (B,) in which values (B, N) differ by more than float64 may."""
    if ours.shape != theirs.shape:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    difference = _difference(ours, theirs)
    found = (difference > 0) & ~(difference <= _SHARE * theirs.abs().amax(1))  # NaN too
    if found.any() and graph is not None:  # unless terms cancel on the way
        allowed = 4.0 * graph.num_classes * score_rounding(graph, x[found])
        found[found.clone()] = ~(difference[found] <= allowed)
    return found


def _difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Largest difference (B,) of two tensors (B, ...); none where both overflow alike."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return torch.where(same, 0.0, ours - theirs).flatten(1).abs().amax(1)


def _beside(x: Tensor, seed: int, size: float) -> Tensor:
    """Steps (B, ...) of length `size` in random directions."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
    return size * step / per_sample(step.flatten(1).norm(dim=1), step)


def _same_slopes(
    combined: Callable[[Tensor], Tensor], graph: Graph, weights: Tensor, x: Tensor
) -> Tensor:
    """Rows (B,) whose gradients are the graph's at one of a few points beside them."""
    same = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def traced(points: Tensor) -> Tensor:
        return (forward_all(graph, points)[-1] * weights).sum(1)

    for draw in range(_DRAWS):
        rows = (~same).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        points = x[rows] + _beside(x[rows], draw, _JITTER)
        values, theirs = score_and_gradient(combined, points)
        _, ours = score_and_gradient(traced, points)
        scale = theirs.flatten(1).abs().amax(1)
        with torch.no_grad():  # how many digits cancel on the way to the logits
            lost = 4.0 * score_rounding(graph, points) / values.abs()
        share = lost.nan_to_num(nan=0.0, posinf=0.0).clamp(min=_SHARE)
        difference = _difference(ours, theirs)
        same[rows] = (difference == 0) | (difference <= share * scale)
    return same


def _is_slope(combined: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Rows (B,) where, beside them, a gradient explains a difference quotient of the values."""
    explained = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for draw, size in enumerate(_STEPS):
        point, step = x + _beside(x, draw, _APART * size), _beside(x, draw + len(_STEPS), size)
        value, gradient = score_and_gradient(combined, point)
        expected = (gradient * step).flatten(1).sum(1)
        with torch.no_grad():
            found = (combined(point + step) - combined(point - step)) / 2
        noise = _QUOTIENT_ROUNDING * (1 + value.abs())
        explained |= (found - expected).abs() <= _QUOTIENT_SHARE * expected.abs() + noise
    return explained
