"""The norm of a score's input gradient, differentiable in the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.objective.double_backward import EfficientDoubleBackward
from greg_cert.train.objective.linear_region import LinearRegion

ESTIMATORS = ("finite-difference", "double-backward")
_STEPS = {torch.float64: 1e-6}
_DEFAULT_STEP = 1e-3  # float32 and below: rounding of S grows as 1/step, curvature as step


class Recording:
    """What an estimator has to see of the pass that makes the scores.

    Pass scores made inside `record()` to `gradient_penalty` together with this object: the finite
    difference then stays inside the linear region of its inputs, and double backward costs less.
    """

    def __init__(self, estimator: str) -> None:
        if estimator not in ESTIMATORS:
            raise UsageError(
                f"expected estimator in {', '.join(ESTIMATORS)}, but got {estimator!r}"
            )
        self._double = EfficientDoubleBackward()
        self._region = None if estimator == "double-backward" else LinearRegion()

    def record(self) -> AbstractContextManager[object]:
        """Watch the forward pass inside."""
        return self._double if self._region is None else self._region.record()

    def hold(self, chosen: Tensor | None) -> AbstractContextManager[object]:
        """Within the block, the linear region of the recorded pass, for samples `chosen` (M,)."""
        return contextlib.nullcontext() if self._region is None else self._region.hold(chosen)

    def input_gradient(self, scores: Tensor, inputs: Tensor) -> Tensor:
        """∇_x S(x) (B, ...), differentiable."""
        return self._double.input_gradient(scores, inputs)


def gradient_penalty(
    score_fn: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    scores: Tensor | None = None,
    estimator: str = "finite-difference",
    step: float | None = None,
    select: Tensor | None = None,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
    recording: Recording | None = None,
) -> Tensor:
    """‖∇_x S‖₂ of each sample, differentiable in the weights that `score_fn` uses.

    `double-backward`: exact, by differentiating the gradient.
    `finite-difference`: with u = ∇S/‖∇S‖ held constant, ∂_θ‖∇S‖ = ⟨u, ∂_θ∇S⟩, which is the
    derivative of (S(x + hu) − S(x))/h up to O(h): one more forward pass and an ordinary backward
    pass. The value itself is exact. The second pass keeps to the linear region of x (see
    `LinearRegion`): each ReLU that switched within the step would add a jump of order 1/h. With
    `scores` given but no `recording` that is not possible, and single gradients are noisy.

    Where ∇S = 0 both derivatives are defined as 0.

    Args:
        score_fn: inputs (B, ...) to scores (B,), or to one number of the whole batch, a scalar; for
            `finite-difference` it must be the same function of its inputs as when `scores` were
            made (BatchNorm!).
        inputs: (B, ...), floating; a leaf that requires grad where `scores` are given.
        scores: `score_fn(inputs)` with its graph, to save a forward pass; without `recording`
            `double-backward` then falls back on PyTorch's own, slower derivatives. Another way to
            the same price is a `score_fn` that keeps its logits, for a loss on the same pass.
        estimator: `finite-difference` or `double-backward`.
        step: h, in the norm of the inputs; by default 1e-3, in float64 1e-6.
        select: (B,) bool, samples to penalise; the others get 0. With it, `score_fn` is called on
            the selected samples alone.
        weights: (B,) ≥ 0, for scores that depend on the whole batch (BatchNorm in training mode, or
            a scalar), where the finite difference cannot tell samples apart: what is right is then
            the derivative of Σ weights·norms, or a multiple of it, and of no other combination.
            Not together with `select`; `double-backward` needs neither.
        scale: σ, broadcastable to one input: the norm is ‖σ∇S‖₂, that of the gradient by inputs
            divided by σ, such as normalised pixels.
        recording: what watched the pass that made `scores`.

    Returns:
        (B,) norms, in score units per input unit.

    Raises:
        UsageError: for an unknown estimator, a step ≤ 0, inputs that carry no gradient or depend on
            others, or shapes that do not match.
    """
    fresh = Recording(estimator)
    recording = recording or (fresh if scores is None else None)
    h = _STEPS.get(inputs.dtype, _DEFAULT_STEP) if step is None else step
    if not h > 0:
        raise UsageError(f"expected step > 0, but got {step}")
    if not inputs.is_floating_point():
        raise UsageError(f"expected floating inputs, but got {inputs.dtype}")
    exact = estimator == "double-backward"
    if scores is None:
        # The finite difference does not see how the inputs came about, so it must not see a half.
        inputs = inputs if exact and inputs.requires_grad else inputs.detach().requires_grad_()
        assert recording is not None
        with recording.record():
            scores = score_fn(inputs)
    elif not inputs.requires_grad or not (exact or inputs.is_leaf):
        raise UsageError("expected leaf inputs that require grad beside their scores")
    if scores.ndim:
        _check_shape("scores", scores, inputs)
    elif weights is None and not exact:
        raise UsageError("expected weights beside a score of the whole batch, but got none")
    if weights is not None:
        _check_shape("weights", weights, inputs)
        if select is not None:
            raise UsageError("expected select or weights, but got both")
    if select is not None:
        _check_shape("select", select, inputs)
        select = select.bool()
    if not scores.requires_grad:
        raise UsageError("expected scores with a graph to the inputs, but they carry no gradient")
    if exact:
        gradient = (recording or fresh).input_gradient(scores, inputs)
        norms = _safe_norm((gradient if scale is None else gradient * scale).flatten(1))
        return norms if select is None else torch.where(select, norms, 0.0)
    unit, norms = _direction(inputs, scores, scale)

    def scores_beside(length: float | Tensor, chosen: Tensor | None) -> Tensor:
        """Scores of the inputs, or of those `chosen`, moved by `length`, one or (B,)."""
        by = _per_sample(length, inputs) if isinstance(length, Tensor) else length
        moved = inputs.detach() + by * unit
        with contextlib.nullcontext() if recording is None else recording.hold(chosen):
            return score_fn(moved if chosen is None else moved[chosen])

    if weights is not None:
        return _coupled(scores_beside, scores, h, weights, norms)
    return _finite_difference(scores_beside, scores, h, select, norms)


def _check_shape(name: str, value: Tensor, inputs: Tensor) -> None:
    if value.shape != inputs.shape[:1]:
        raise UsageError(f"expected {name} ({len(inputs)},), but got {tuple(value.shape)}")


_ScoresBeside = Callable[[float | Tensor, Tensor | None], Tensor]


def _direction(inputs: Tensor, scores: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The direction σ·u (B, ...) with ∂‖σ∇S‖ = ⟨σ·u, ∂∇S⟩, and the norms (B,)."""
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, retain_graph=True)
    scaled = gradient if scale is None else gradient * scale
    norms = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
    unit = scaled / _per_sample(norms.clamp_min(torch.finfo(norms.dtype).tiny), inputs)
    return unit if scale is None else unit * scale, norms


def _per_sample(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(-1, *[1] * (inputs.ndim - 1))


def _finite_difference(
    scores_beside: _ScoresBeside, scores: Tensor, h: float, select: Tensor | None, norms: Tensor
) -> Tensor:
    chosen = None
    if select is not None:
        chosen = select.nonzero().squeeze(1)
        if len(chosen) == 0:
            return torch.zeros_like(norms)
        scores = scores[chosen]
    slope = (scores_beside(h, chosen) - scores) / h
    kept = norms if chosen is None else norms[chosen]
    # Zero in value, the derivative in gradient: the value stays the exact norm.
    whole: Tensor = kept + (slope - slope.detach()) * (kept > 0)
    if chosen is None:
        return whole
    return torch.zeros_like(norms).index_copy(0, chosen, whole.to(norms.dtype))


def _coupled(
    scores_beside: _ScoresBeside, scores: Tensor, h: float, weights: Tensor, norms: Tensor
) -> Tensor:
    """Norms whose weighted sum has the derivative of Σ_j S_j along the weighted directions.

    Σ_j w_j ∂‖G_j‖ = ∂⟨Σ_j w_j u_j, ∇ΣS⟩ for the rows G_j of ∇ΣS, whose directions u_j stand still:
    one step of all rows at once, each by its weight.
    """
    largest = weights.max().clamp_min(torch.finfo(norms.dtype).tiny)
    slope = largest * (scores_beside(h * (weights / largest), None) - scores).sum() / h
    total = weights.sum()
    share = torch.where(total > 0, slope / total.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    whole: Tensor = norms + (share - share.detach())
    return whole


def _safe_norm(flat: Tensor) -> Tensor:
    """Row norms whose derivative at 0 is 0, to every order."""
    squared = (flat * flat).sum(1)
    zero = squared == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
