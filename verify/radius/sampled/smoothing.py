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
from greg_cert.verify.radius.sampled.samples import rechunk, sample_indices
from greg_cert.verify.radius.sampled.smoothing_bounds import (
    clopper_pearson_lower,
    linf_radius,
    smoothing_radius,
)
from greg_cert.verify.radius.sampled.smoothing_state import (
    SampleCounts,
    SmoothingOptions,
    SmoothingState,
)
from greg_cert.verify.scorer import check_inputs

ACCEPTED, REJECTED, ABSTAINED = DECISIONS

Accept = Callable[[Tensor], Tensor]
"""Noisy inputs (M, ...) to decisions (M,) bool, True where accepted as in-distribution."""

_BLOCK = 128  # draws of one random stream; a part of what a seed means


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
    state: SmoothingState | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SmoothedDecisions:
    """Decide every input by the smoothed detector, with the radius in which that is stable.

    True with probability ≥ 1 − alpha per sample, for the smoothed detector and not for the base
    detector. The first `n0` draws select a decision; `n` independent ones bound its probability.

    Draw k of a sample depends on the seed, the sample's index and k alone. So the result does not
    depend on `batch`, on the other samples, or on stops in between, as long as `accept` decides
    each row by itself.

    Args:
        accept: the base detector, see `Accept`; it must be the same function throughout, and
            decides itself what a score that is not finite means.
        inputs: (B, C, H, W) or (B, D) raw pixels; `accept` gets float64 for float64, and float32
            for all else. Noisy copies are not clipped.
        options: see `SmoothingOptions`.
        indices: (B,) distinct integers that name the samples, by default their positions.
        norm: in which radii are measured, 2 or inf.
        max_radius: larger radii, in that norm, are reported as this one.
        state: counts to continue from; kept up to date, also when `accept` raises.
        progress: called after every forward pass with the draws done and the draws wanted, when
            `state` is up to date and may be saved.

    Raises:
        UsageError: for a value out of range, a state that does not fit, or an `accept` that
            returns something else than (M,) bool.
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
    state = SmoothingState(options) if state is None else state
    for name, image in zip(names, inputs, strict=True):
        state.begin(name, image, options)
    total = len(names) * (options.n0 + options.n)
    done = sum(_drawn(state.samples[name]) for name in names)
    for name, image in zip(names, inputs, strict=True):
        for counts in _count(accept, image, name, state.samples[name], options):
            done += _drawn(counts) - _drawn(state.samples[name])
            state.samples[name] = counts
            if progress is not None:
                progress(done, total)
    found = _decide([state.samples[name] for name in names], options, inputs.device)
    radius = found.radius
    if norm != 2.0:
        radius = linf_radius(radius, inputs[0].numel())
    if max_radius is not None:
        radius = radius.clamp(max=max_radius)  # NaN stays
    return replace(found, radius=radius)


def _count(
    accept: Accept, image: Tensor, index: int, counts: SampleCounts, options: SmoothingOptions
) -> Iterator[SampleCounts]:
    """The counts of one sample after every forward pass that is left to do."""
    key = (options.seed, SELECTION, index)
    for copies in rechunk(
        _noisy(image, options.sigma, key, counts.selection.drawn, options.n0), options.batch
    ):
        tally = counts.selection.plus(_decisions(accept, copies))
        counts = replace(counts, selection=tally)
        yield counts
    key = (options.seed, ESTIMATION, index)
    for copies in rechunk(
        _noisy(image, options.sigma, key, counts.estimation.drawn, options.n), options.batch
    ):
        tally = counts.estimation.plus(_decisions(accept, copies))
        counts = replace(counts, estimation=tally)
        yield counts


def _noisy(
    image: Tensor, sigma: float, key: tuple[int, int, int], start: int, stop: int
) -> Iterator[Tensor]:
    """Noisy copies number `start` to `stop` of an image, in pieces; noise is made in float64."""
    centre = image.double().cpu()
    if start >= stop:
        return
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        first = block * _BLOCK
        rows = min(stop - first, _BLOCK)  # a shorter draw is the beginning of a longer one
        noise = sample_stream(*key, block).standard_normal((rows, *centre.shape))
        copies = centre + sigma * torch.as_tensor(noise[max(start - first, 0) :], device="cpu")
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
    samples: list[SampleCounts], options: SmoothingOptions, device: torch.device
) -> SmoothedDecisions:
    accepting = [2 * counts.selection.accepted > options.n0 for counts in samples]
    count = torch.tensor(
        [
            counts.estimation.accepted if yes else options.n - counts.estimation.accepted
            for counts, yes in zip(samples, accepting, strict=True)
        ],
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


def _drawn(counts: SampleCounts) -> int:
    return counts.selection.drawn + counts.estimation.drawn
