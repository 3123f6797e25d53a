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

    `double-backward`: exact, by differentiating the gradient.
    `finite-difference`: with u = ∇S/‖∇S‖ held constant, ∂_θ‖∇S‖ = ⟨u, ∂_θ∇S⟩, which is the
    derivative of (S(x + hu) − S(x))/h up to O(h): one more forward pass and an ordinary backward
    pass. The value itself is exact. The derivative is close while no ReLU switches between x and
    x + hu; each unit that does adds a jump of order 1/h, so on deep ReLU networks in float32 single
    gradients are noisy, whatever the step (docs/method.md has measurements).

    Where ∇S = 0 both derivatives are defined as 0.

    Args:
        score_fn: inputs (B, ...) to scores (B,); for `finite-difference` it must give every sample
            the same function of its input as when `scores` were made (BatchNorm and Dropout!).
        inputs: (B, ...), floating; a leaf that requires grad where `scores` are given.
        scores: (B,) `score_fn(inputs)` with its graph, to save a forward pass.
        estimator: `finite-difference` or `double-backward`.
        step: h, in the norm of the inputs; by default 1e-3, in float64 1e-6.
        select: (B,) bool, samples to penalise; the others get 0. With it, `score_fn` is called on
            the selected samples alone.

    Returns:
        (B,) norms, in score units per input unit.

    Raises:
        UsageError: for an unknown estimator, a step ≤ 0, inputs that carry no gradient or depend on
            others, or shapes that do not match.
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"expected estimator in {', '.join(ESTIMATORS)}, but got {estimator!r}")
    h = _STEPS.get(inputs.dtype, _DEFAULT_STEP) if step is None else step
    if not h > 0:
        raise UsageError(f"expected step > 0, but got {step}")
    if not inputs.is_floating_point():
        raise UsageError(f"expected floating inputs, but got {inputs.dtype}")
    exact = estimator == "double-backward"
    if scores is None:
        # The finite difference does not see how the inputs came about, so it must not see a half.
        inputs = inputs if exact and inputs.requires_grad else inputs.detach().requires_grad_()
        scores = score_fn(inputs)
    elif not inputs.requires_grad or not (exact or inputs.is_leaf):
        raise UsageError("expected leaf inputs that require grad beside their scores")
    _check_shape("scores", scores, inputs)
    if select is not None:
        _check_shape("select", select, inputs)
        select = select.bool()
    if not scores.requires_grad:
        raise UsageError("expected scores with a graph to the inputs, but they carry no gradient")
    if exact:
        (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        norms = _safe_norm(gradient.flatten(1))
        return norms if select is None else torch.where(select, norms, 0.0)
    return _finite_difference(score_fn, inputs, scores, h, select)


def _check_shape(name: str, value: Tensor, inputs: Tensor) -> None:
    if value.shape != inputs.shape[:1]:
        raise UsageError(f"expected {name} ({len(inputs)},), but got {tuple(value.shape)}")


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
