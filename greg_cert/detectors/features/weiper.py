"""WeiPer+KLD: how an image's features, and its logits by perturbed heads, are distributed.

Our own kernel: pytorch-ood has none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.detectors.fitted import Fitted, Score
from greg_cert.detectors.penultimate import Head

_HEADS = 100  # perturbed ones
_BINS = 100  # of a histogram
_AT_ONCE = 2**24  # perturbed logits


def weiper(
    head: Head,
    train: Tensor,
    *,
    delta: float,
    lambda_1: float,
    lambda_2: float,
    smoothing: int,
    smoothing_perturbed: int,
) -> Fitted:
    """KL_z + λ₁·KL_f − λ₂·MSP.

    KL_z is the divergence KL(p‖q) + KL(q‖p) of two histograms of 100 bins over the range of all
    training features: q of the D features of the image, with `smoothing` neighbouring bins
    averaged, and p the mean histogram of training images. 0.01 is added to each bin of both, which
    are then brought to sum 1. KL_f is the same for the logits of 100 perturbed heads, with
    `smoothing_perturbed` and 0.025. MSP is the maximum softmax probability, mean over these heads.

    The defaults are the authors' for CIFAR-10. Averages reach over bins i − ⌊(s−1)/2⌋ …
    i + ⌈(s−1)/2⌉, and repeat the first and last bin beyond the ends.

    Source: Granz et al., NeurIPS 2024, and the authors' code.
    """
    wide = perturbed_head(head, delta)

    def mean_msp(logits: Tensor) -> Tensor:
        by_head = logits.view(len(logits), _HEADS, len(head.weight))
        return by_head.softmax(2).amax(2).mean(1)

    rows = max(1, _AT_ONCE // len(wide.weight))
    parts = train.split(rows)
    of_features = _divergence(parts, lambda z: z, smoothing, 0.01)
    of_logits = _divergence(parts, wide.logits, smoothing_perturbed, 0.025)

    def score(z: Tensor) -> Tensor:
        logits = wide.logits(z)
        return of_features(z) + lambda_1 * of_logits(logits) - lambda_2 * mean_msp(logits)

    return Fitted(lambda z: torch.cat([score(part) for part in z.split(rows)]))


def perturbed_head(head: Head, delta: float) -> Head:
    """100 heads in one, (100·K, D): each row w of W plus δ‖w‖₂ times a random direction.

    Directions are drawn from a generator of seed 0, the same for every head of a shape. Biases are
    left as they are.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_HEADS, *head.weight.shape, dtype=head.weight.dtype, generator=generator)
    step = delta * head.weight.norm(dim=1, keepdim=True) * F.normalize(noise, dim=2)
    return Head((head.weight + step).flatten(0, 1), head.bias.repeat(_HEADS))


def _divergence(parts: tuple[Tensor, ...], seen: Score, smoothing: int, floor: float) -> Score:
    """Of values (B, n) to (B,), from the mean over training data (parts) of values seen of them."""
    ends = [torch.stack(torch.aminmax(seen(part))) for part in parts]
    low, high = (float(v) for v in (torch.stack(ends)[:, 0].min(), torch.stack(ends)[:, 1].max()))
    total = sum(len(part) for part in parts)
    mean = torch.stack([histogram(seen(part), low, high).sum(0) for part in parts]).sum(0) / total
    p = (mean + floor) / (mean + floor).sum()
    before = (smoothing - 1) // 2

    def divergence(values: Tensor) -> Tensor:
        padded = F.pad(
            histogram(values, low, high)[:, None], (before, smoothing - 1 - before), "replicate"
        )
        q = F.avg_pool1d(padded, smoothing, stride=1)[:, 0] + floor
        q = q / q.sum(1, keepdim=True)
        return ((p - q) * (p.log() - q.log())).sum(1)

    return divergence


def histogram(values: Tensor, low: float, high: float) -> Tensor:
    """(B, 100) shares of the n values of each row (B, n) in equal bins from `low` to `high`.

    Values outside are in no bin, but count in the shares.
    """
    place = (values - low) * (_BINS / max(high - low, 1e-300))
    inside = (values >= low) & (values <= high)
    counts = values.new_zeros(len(values), _BINS)
    counts.scatter_add_(1, place.floor().clamp(0, _BINS - 1).long(), inside.to(values.dtype))
    return counts / values.shape[1]
