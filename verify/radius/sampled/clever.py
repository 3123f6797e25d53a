"""CLEVER: the steepest slope of the score in a ball, extrapolated from samples. An ESTIMATE.

Nothing here is proven. Gradients at random points of the ball are a lower bound of the steepest
slope, and extreme value theory guesses how much steeper it may get; the guess may be too low, as
with a network that is steep only in a corner that no sample hits. `lipschitz_bound` is proven.

Source: Weng et al., "Evaluating the Robustness of Neural Networks: An Extreme Value Theory
Approach", ICLR 2018, Algorithm 1. The points of their ball are uniform, as here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.seeded import CLEVER, sample_stream
from greg_cert.verify.norms import check_norm, dual_norm
from greg_cert.verify.per_sample import check_rowwise
from greg_cert.verify.radius.sampled.reverse_weibull import (
    LEAST_SAMPLES,
    Array,
    fit_reverse_weibull,
)
from greg_cert.verify.radius.sampled.samples import check_count, rechunk, sample_indices
from greg_cert.verify.scorer import ScoreFunction, check_inputs, score_and_gradient


@dataclass(frozen=True)
class CleverOptions:
    """How a CLEVER estimate is made.

    Attributes:
        batches: maxima that the distribution is fitted to, N_b in the paper (500 there).
        batch_size: points that each is the maximum of, N_s in the paper (1024 there).
        seed: of all draws.
        chunk: points a backward pass; memory alone depends on it.

    Raises:
        UsageError: for a value out of range.
    """

    batches: int = 50
    batch_size: int = 100
    seed: int = 0
    chunk: int = 256

    def __post_init__(self) -> None:
        check_count("batches", self.batches, LEAST_SAMPLES)
        check_count("batch_size", self.batch_size, 1)
        check_count("seed", self.seed, 0)
        check_count("chunk", self.chunk, 1)


@dataclass(frozen=True)
class CleverEstimate:
    """The estimate and what it rests on: (B,) tensors in float64, `fitted` in bool.

    Attributes:
        lipschitz_estimate: location of the reverse Weibull fit; where there is no usable fit, the
            sampled maximum. An ESTIMATE that the true constant may exceed.
        sampled_maximum: largest gradient norm sampled: a lower bound of the true constant.
        fitted: whether the batch maxima had a usable fit. They have none where they are (almost)
            the same, as of a score that is linear in the ball (the estimate is then exact but for
            what no sample hit), and where they show no upper end.
        fit_statistic: Kolmogorov-Smirnov distance of the batch maxima from the fit.
        fit_pvalue: its p-value; a small one discredits the fit. It errs on the high side, see
            `ReverseWeibull`.
        shape: of the fit, ≥ 1; at 1 the estimate is the sampled maximum.
        scale: of the fit.

    The last four are NaN where `fitted` is false.
    """

    lipschitz_estimate: Tensor
    sampled_maximum: Tensor
    fitted: Tensor
    fit_statistic: Tensor
    fit_pvalue: Tensor
    shape: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.lipschitz_estimate)


def clever_estimate(
    score: ScoreFunction,
    inputs: Tensor,
    radius: float | Tensor,
    *,
    norm: float = 2.0,
    options: CleverOptions | None = None,
    indices: Tensor | None = None,
) -> CleverEstimate:
    """CLEVER estimate (B,) of sup ‖∇S‖* over the ball of `radius` about each input. No bound.

    Per sample: `batches` times `batch_size` points, uniform in the ball (which is not clipped);
    the dual norm of the gradient at each; the largest of each batch; and the location of the
    reverse Weibull distribution fitted to those.

    Args:
        score: (B, ...) to (B,), differentiable, each score a function of its own row; evaluated in
            float64, as by `score_function`.
        inputs: (B, C, H, W) or (B, D) raw pixels.
        radius: of the balls, one for all or (B,).
        norm: of the balls, 2 or inf; gradients are measured in its dual.
        options: see `CleverOptions`.
        indices: (B,) integers that name the samples, by default their positions. A sample's points
            depend on the seed, its name and the batch number only.

    Raises:
        UsageError: for a value out of range, or a gradient that is not finite.
        UnsupportedModelError: for a score of the batch, or of chance.
    """
    options = options or CleverOptions()
    x = check_inputs(inputs)
    norm = check_norm(norm)
    radii = _radii(radius, len(x))
    names = sample_indices(indices, len(x))
    check_rowwise(score, x[:1], "the score")  # few rows: memory is bounded by `chunk`
    samples = len(x) * options.batches * options.batch_size
    norms = torch.empty(samples, dtype=torch.float64, device="cpu")
    done = 0
    for points in rechunk(_points(x, radii, norm, names, options), options.chunk):
        _, gradient = score_and_gradient(score, points)
        norms[done : done + len(points)] = dual_norm(gradient, norm)
        done += len(points)
    if not norms.isfinite().all():
        raise UsageError("expected a score with finite gradients in the ball, but found others")
    maxima = norms.reshape(len(x), options.batches, options.batch_size).amax(2)
    rows = [_extrapolate(row) for row in maxima]
    columns = torch.tensor(rows, dtype=torch.float64, device=x.device).T
    estimate, largest, fitted, statistic, pvalue, shape, scale = columns.unbind()
    return CleverEstimate(estimate, largest, fitted.bool(), statistic, pvalue, shape, scale)


def clever_radius_estimate(gap: Tensor, estimate: CleverEstimate, radius: float | Tensor) -> Tensor:
    """min{radius, gap/lipschitz_estimate}, (B,): the paper's ε* with an estimated slope. No proof.

    Args:
        gap: (B,) distance of the score to the threshold; one that is not positive gives 0.
        estimate: made for balls of `radius`.
        radius: one for all or (B,).
    """
    radii = _radii(radius, len(estimate)).to(gap.device)
    reach = gap.double() / estimate.lipschitz_estimate.to(gap.device)
    return torch.where(gap > 0, torch.minimum(reach, radii), 0.0)


def _radii(radius: float | Tensor, count: int) -> Tensor:
    radii = torch.as_tensor(radius, dtype=torch.float64, device="cpu")
    if radii.shape not in ((), (count,)):
        raise UsageError(
            f"expected radius to be a number or ({count},), but got {tuple(radii.shape)}"
        )
    wrong = ~(radii.isfinite() & (radii > 0))
    if wrong.any():
        raise UsageError(
            f"expected radius > 0 and finite, but got {radii[wrong].flatten()[0].item()}"
        )
    return radii.expand(count)


def _points(
    x: Tensor, radii: Tensor, norm: float, names: list[int], options: CleverOptions
) -> Iterator[Tensor]:
    """The points of every batch of every sample in turn, (batch_size, ...) each."""
    for centre, radius, name in zip(x, radii.tolist(), names, strict=True):
        for batch in range(options.batches):
            stream = sample_stream(options.seed, CLEVER, name, batch)
            unit = _uniform(stream, options.batch_size, centre.numel(), norm)
            delta = torch.as_tensor(radius * unit, device=x.device)
            yield centre + delta.reshape(-1, *centre.shape)


def _uniform(stream: np.random.Generator, count: int, dimension: int, norm: float) -> Array:
    """Points (count, dimension), uniform in the unit ball."""
    if norm == math.inf:
        return stream.uniform(-1.0, 1.0, (count, dimension))
    # A direction by the symmetry of the normal distribution; a share r^d of the volume is within r.
    direction = stream.standard_normal((count, dimension))
    length = stream.random((count, 1)) ** (1 / dimension)
    direction *= length / np.linalg.norm(direction, axis=1, keepdims=True)
    return direction


def _extrapolate(maxima: Tensor) -> tuple[float, ...]:
    """The columns of `CleverEstimate` for the batch maxima (N_b,) of one sample."""
    largest = float(maxima.max())
    fit = fit_reverse_weibull(maxima.numpy())
    if fit is None:
        return (largest, largest, 0.0, *[math.nan] * 4)
    return (fit.location, largest, 1.0, fit.statistic, fit.pvalue, fit.shape, fit.scale)
