"""Gaussian randomised smoothing of the decision to accept: a proof for any network, by sampling.

It differs from the bounds of this folder in two ways. It is PROBABILISTIC: the statement about one
sample is false with probability ≤ alpha over the noise drawn (over B samples, some statement is
with probability ≤ B·alpha). And it is about ANOTHER DETECTOR, the smoothed one, which accepts what
the base detector accepts more often than not under noise:

    g(x) = the more probable of "accepted" (S(x + η) ≤ γ) and "rejected", η ~ N(0, σ²I).

Nothing follows for the base detector: its true radius may be smaller than the one proven here.

Source: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing",
ICML 2019, the procedure CERTIFY. As there, rounding in floating point is not accounted for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.certificates.methods import DECISIONS
from greg_cert.errors import UsageError
from greg_cert.seeded import ESTIMATION, SELECTION, sample_stream
from greg_cert.verify.norms import check_norm, check_radius
from greg_cert.verify.radius.sampled.samples import check_count, rechunk, sample_indices
from greg_cert.verify.radius.sampled.smoothing_bounds import (
    clopper_pearson_lower,
    linf_radius,
    smoothing_radius,
)
from greg_cert.verify.scorer import check_inputs

ACCEPTED, REJECTED, ABSTAINED = DECISIONS

Accept = Callable[[Tensor], Tensor]
"""Noisy inputs (M, ...) to decisions (M,) bool, True where accepted as in-distribution."""

_BLOCK = 128  # draws of one random stream; a part of what a seed means


@dataclass(frozen=True)
class SmoothingOptions:
    """How decisions are smoothed.

    Attributes:
        sigma: standard deviation of the noise, in raw pixels; it defines the smoothed detector.
        n0: draws that select which decision to prove.
        n: further draws that prove it; the radius is at most σ·Φ⁻¹(alpha^(1/n)).
        alpha: how likely, at most, the statement about one sample is false.
        batch: noisy copies a forward pass; memory alone depends on it.
        seed: of all draws.

    Raises:
        UsageError: for a value out of range.
    """

    sigma: float = 0.25
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    batch: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"expected sigma > 0 and finite, but got {self.sigma}")
        if not 0 < self.alpha < 1:
            raise UsageError(f"expected 0 < alpha < 1, but got {self.alpha}")
        check_count("n0", self.n0, 1)
        check_count("n", self.n, 1)
        check_count("batch", self.batch, 1)
        check_count("seed", self.seed, 0)


@dataclass(frozen=True)
class SmoothedDecisions:
    """Decisions of the SMOOTHED detector and the radii within which they hold, a row a sample.

    Each row is true with probability ≥ 1 − alpha over the noise drawn, and says nothing about the
    base detector.

    Attributes:
        decision: (B,) strings. `accepted` or `rejected`; `abstained` where neither was proven.
        radius: (B,) ℓ2 radius σ·Φ⁻¹(p_lower) in raw pixels, over √d where the norm is inf: every
            input strictly nearer gets the same smoothed decision. NaN where abstained, since
            nothing is claimed there.
        p_lower: (B,) lower confidence bound of the probability of the selected decision under
            noise; ≤ 1/2 where abstained.
        count: (B,) of the n draws, those with the selected decision.
        n: (B,) draws that `count` is out of; the selecting draws are not among them.
    """

    decision: NDArray[np.str_]
    radius: Tensor
    p_lower: Tensor
    count: Tensor
    n: Tensor

    def __len__(self) -> int:
        return len(self.radius)


@torch.no_grad()
def smoothed_decisions(
    accept: Accept,
    inputs: Tensor,
    options: SmoothingOptions | None = None,
    *,
    indices: Tensor | None = None,
    norm: float = 2.0,
    max_radius: float | None = None,
) -> SmoothedDecisions:
    """Decide every input by the smoothed detector, with the radius in which that is stable.

    True with probability ≥ 1 − alpha per sample, for the smoothed detector and not for the base
    detector. The first `n0` draws select a decision; `n` independent ones bound its probability.

    Draw k of a sample depends on the seed, the sample's index and k alone. So the result does not
    depend on `batch` or on the other samples, as long as `accept` decides each row by itself.

    Args:
        accept: the base detector, see `Accept`; it must be the same function throughout, and
            decides itself what a score that is not finite means.
        inputs: (B, C, H, W) or (B, D) raw pixels; `accept` gets float64 for float64, and float32
            for all else. Noisy copies are not clipped.
        options: see `SmoothingOptions`.
        indices: (B,) distinct integers that name the samples, by default their positions.
        norm: in which radii are measured, 2 or inf.
        max_radius: larger radii, in that norm, are reported as this one.

    Raises:
        UsageError: for a value out of range, or an `accept` that returns something else than (M,)
            bool.
    """
    options = options or SmoothingOptions()
    check_inputs(inputs)
    if inputs.dtype != torch.float64:  # noise would be rounded to the pixels' own steps
        inputs = inputs.float()
    norm = check_norm(norm)
    if max_radius is not None:
        check_radius("max_radius", max_radius)
    names = sample_indices(indices, len(inputs))
    if len(set(names)) < len(names):
        raise UsageError("expected distinct indices, but some are repeated")
    counts = [_count(accept, *row, options) for row in zip(inputs, names, strict=True)]
    found = _decide(counts, options, inputs.device)
    radius = found.radius
    if norm != 2.0:
        radius = linf_radius(radius, inputs[0].numel())
    if max_radius is not None:
        radius = radius.clamp(max=max_radius)  # NaN stays
    return replace(found, radius=radius)


def _count(
    accept: Accept, image: Tensor, index: int, options: SmoothingOptions
) -> tuple[bool, int]:
    """Whether most of the selecting draws of a sample are accepted, and how many of the others."""
    accepted = []
    for purpose, draws in ((SELECTION, options.n0), (ESTIMATION, options.n)):
        noisy = _noisy(image, options.sigma, (options.seed, purpose, index), draws)
        parts = rechunk(noisy, options.batch)
        accepted.append(sum(int(_decisions(accept, copies).sum()) for copies in parts))
    return 2 * accepted[0] > options.n0, accepted[1]


def _noisy(image: Tensor, sigma: float, key: tuple[int, int, int], draws: int) -> Iterator[Tensor]:
    """Noisy copies of an image, in blocks; noise is made in float64."""
    centre = image.double().cpu()
    for block in range(-(-draws // _BLOCK)):
        # A shorter draw is the beginning of a longer one.
        rows = min(draws - block * _BLOCK, _BLOCK)
        noise = sample_stream(*key, block).standard_normal((rows, *centre.shape))
        copies = centre + sigma * torch.as_tensor(noise, device="cpu")
        yield copies.to(image.dtype).to(image.device)


def _decisions(accept: Accept, copies: Tensor) -> Tensor:
    decisions = accept(copies)
    if decisions.dtype != torch.bool or decisions.shape != (len(copies),):
        raise UsageError(
            f"expected accept to return ({len(copies)},) bool, "
            f"but got {tuple(decisions.shape)} of {decisions.dtype}"
        )
    return decisions


def _decide(
    counts: list[tuple[bool, int]], options: SmoothingOptions, device: torch.device
) -> SmoothedDecisions:
    accepting = [accepts for accepts, _ in counts]
    count = torch.tensor(
        [accepted if accepts else options.n - accepted for accepts, accepted in counts],
        device="cpu",
    )
    p_lower = clopper_pearson_lower(count, options.n, options.alpha)
    radius = smoothing_radius(p_lower, options.sigma)
    decision = np.where(accepting, ACCEPTED, REJECTED)
    decision = np.where(radius.isnan().numpy(), ABSTAINED, decision)
    n = torch.full_like(count, options.n)
    return SmoothedDecisions(
        decision, radius.to(device), p_lower.to(device), count.to(device), n.to(device)
    )
