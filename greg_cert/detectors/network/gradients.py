"""Detectors that differentiate the network with respect to its images: ODIN and AdaSCALE.

ODIN is pytorch-ood's, which has no AdaSCALE.
"""

from __future__ import annotations

import torch
from pytorch_ood.detector import ODIN
from torch import Tensor

from greg_cert.data import Images
from greg_cert.detectors.features.shaping import sum_ratio
from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Penultimate, batches, rows_of
from greg_cert.errors import UsageError
from greg_cert.scores import energy

_MOST_IMAGES = 5000  # of the training data that AdaSCALE is fitted on: the authors' number


def odin(network: Penultimate, *, temperature: float, eps: float) -> Fitted:
    """−max softmax(f(x̂)/T), x̂ = x − eps·sign ∇(cross-entropy of the predicted class), x̂ free.

    The step is in raw pixels; OpenOOD's 0.0014 is too, since it divides its step in normalised
    pixels by the standard deviation.

    Source: Liang et al., ICLR 2018, section 3.
    """
    method = ODIN(network.logits, temperature=temperature, eps=eps)

    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            found: Tensor = method(x.to(torch.float64))
        return found.detach().cpu()

    return Fitted(score)


def adascale(
    network: Penultimate,
    images: Images | Tensor,
    *,
    p_min: float,
    p_max: float,
    weight: float,
    share: float,
    eps: float,
) -> Fitted:
    """AdaSCALE-A: `scale` with a percentile of its own for each image; then energy.

    The percentile is p_min + (1 − F(Q))·(p_max − p_min), with F the empirical distribution of Q
    over training images (5,000 at most, evenly spaced in the set): the less an image's features
    shift, the more it is scaled. Q = `weight`·Σ|z′ − z| over the largest 1 % of the features z,
    plus Σ max(z′, 0) over the largest 5 %, at least one feature each; z′ are the features of
    x′ = x + eps·sign ∇ of the largest logit, at the `share` of the pixel values (each channel's by
    itself) with the smallest |∇|, and x′ = x at all others. x′ is not clipped to [0, 1].

    The authors' step is 0.5 in normalised pixels: 0.113 in raw ones with ImageNet's standard
    deviations, which are 0.226 on average.

    Raises:
        UsageError: if `p_min` exceeds `p_max`.

    Source: Regmi, 'AdaSCALE', arXiv 2503.08023, and the author's code, where λ is `weight`, o is
    `share`, and k₁ = 1 %, k₂ = 5 %.
    """
    if p_min > p_max:
        raise UsageError(
            f"detector adascale: expected p_min <= p_max, {p_max:g}, but got {p_min:g}"
        )

    def shifted(x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and Q (B,) of a batch, on the CPU."""
        with torch.enable_grad():
            x = x.to(network.device, torch.float64).requires_grad_()
            logits, z = network.logits_and_features(x)
            (slope,) = torch.autograd.grad(logits.amax(1).sum(), x)
        flat = slope.flatten(1)
        trivial = flat.abs().topk(int(share * flat.shape[1]), dim=1, largest=False).indices
        step = torch.zeros_like(flat).scatter(1, trivial, eps * flat.gather(1, trivial).sign())
        z = z.detach().cpu()
        moved = network.outputs(x.detach() + step.view_as(x)).features
        assert moved is not None
        order = z.argsort(dim=1, descending=True)
        few, more = (order[:, : max(1, int(z.shape[1] * part))] for part in (0.01, 0.05))
        shift = (moved - z).abs().gather(1, few).sum(1)
        return z, weight * shift + moved.clamp(min=0).gather(1, more).sum(1)

    if len(images) > _MOST_IMAGES:
        chosen = torch.arange(_MOST_IMAGES) * len(images) // _MOST_IMAGES
        images = rows_of(images, chosen)
    seen = torch.cat([shifted(x)[1] for x in batches(images)]).sort().values
    head = network.head

    def score(x: Tensor) -> Tensor:
        z, q = shifted(x)
        below = torch.searchsorted(seen, q, right=True) / len(seen)
        percentile = p_min + (1 - below) * (p_max - p_min)
        return energy(head.logits(z * sum_ratio(z, percentile[:, None]).exp()))

    return Fitted(score)
