"""The norm of a score's input gradient, differentiable in the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from greg_cert.errors import UsageError

ESTIMATORS = ("finite-difference", "double-backward")
_STEPS = {torch.float64: 1e-6}
_DEFAULT_STEP = 1e-3  # float32 and below: rounding of S grows as 1/step, curvature as step


def gradient_penalty(
    score_fn: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    scores: Tensor | None = None,
    estimator: str = "finite-difference",
    step: float | None = None,
    select: Tensor | None = None,
) -> Tensor:
    """‖∇_x S‖₂ of each sample, differentiable in the weights that `score_fn` uses.

    `finite-difference`: with u = ∇S/‖∇S‖ held constant, ∂_θ‖∇S‖ = ⟨u, ∂_θ∇S⟩, which is the
    derivative of (S(x + hu) − S(x))/h up to O(h), and exactly inside one linear region of a ReLU
    network. One more forward pass and an ordinary backward pass; the value itself is exact.
    `double-backward`: exact, by differentiating the gradient.

    Where ∇S = 0 both derivatives are defined as 0.

    Args:
        score_fn: inputs (B, ...) to scores (B,); for `finite-difference` it must give every sample
            the same function of its input as when `scores` were made (BatchNorm and Dropout!).
        inputs: (B, ...); must require grad where `scores` are given.
        scores: (B,) `score_fn(inputs)` with its graph, to save a forward pass.
        estimator: `finite-difference` or `double-backward`.
        step: h, in the norm of the inputs; by default 1e-3, in float64 1e-6.
        select: (B,) bool, samples to penalise; the others get 0. With it, `score_fn` is called on
            the selected samples alone.

    Returns:
        (B,) norms, in score units per input unit.

    Raises:
        UsageError: for an unknown estimator, a step ≤ 0, or inputs that carry no gradient.
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"expected estimator in {', '.join(ESTIMATORS)}, but got {estimator!r}")
    h = _STEPS.get(inputs.dtype, _DEFAULT_STEP) if step is None else step
    if not h > 0:
        raise UsageError(f"expected step > 0, but got {step}")
    if scores is None:
        inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        scores = score_fn(inputs)
    elif not inputs.requires_grad:
        raise UsageError("expected inputs that require grad beside their scores")
    if estimator == "double-backward":
        (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        norms = _safe_norm(gradient.flatten(1))
        return norms if select is None else norms * select
    return _finite_difference(score_fn, inputs, scores, h, select)


def _finite_difference(
    score_fn: Callable[[Tensor], Tensor],
    inputs: Tensor,
    scores: Tensor,
    h: float,
    select: Tensor | None,
) -> Tensor:
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, retain_graph=True)
    flat = gradient.detach().flatten(1)
    norms = torch.linalg.vector_norm(flat, dim=1)
    unit = flat / norms.clamp_min(torch.finfo(flat.dtype).tiny).unsqueeze(1)
    moved = inputs.detach() + h * unit.unflatten(1, inputs.shape[1:])
    if select is None:
        slope = (score_fn(moved) - scores) / h
        # Zero in value, the derivative in gradient: the value stays the exact norm.
        whole: Tensor = norms + (slope - slope.detach()) * (norms > 0)
        return whole
    chosen = select.nonzero().squeeze(1)
    if len(chosen) == 0:
        return torch.zeros_like(norms)
    slope = (score_fn(moved[chosen]) - scores[chosen]) / h
    kept = norms[chosen] + (slope - slope.detach()) * (norms[chosen] > 0)
    return torch.zeros_like(norms).index_copy(0, chosen, kept.to(norms.dtype))


def _safe_norm(flat: Tensor) -> Tensor:
    """Row norms whose derivative at 0 is 0, to every order."""
    squared = (flat * flat).sum(1)
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
