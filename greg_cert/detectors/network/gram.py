"""Gram: how far the correlations between the channels of maps leave the range of their class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.data import Images
from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.network.feature_maps import FeatureMaps
from greg_cert.detectors.penultimate import Penultimate, batches, rows_of

_HELD_OUT = 10  # of so many training images one is kept from the ranges


@torch.no_grad()
def gram(network: Penultimate, train: Images | Tensor, *, powers: int) -> Fitted:
    """Σ_l δ_l(x)/E[δ_l] over all feature maps l, divided by max softmax f(x).

    With g the row sums of Fᵖ·Fᵖᵀ, to the power 1/p with their sign, of a map F (C, HW), and [a, b]
    the range of each entry over the training images of the predicted class,
    δ_l = Σ over p = 1 … `powers` and C of max(0, a − g)/|a + 1e-6| + max(0, g − b)/|b + 1e-6|.

    Every tenth training image is kept from the ranges and gives E[δ_l], which the authors take of a
    tenth of the test images; it is 1 where that mean is 0 or there are fewer images. A class that
    no training image is predicted as has the range of all classes.

    pytorch-ood's keeps g of all training images in memory, draws the tenth from the global
    generator, takes labels for predictions, and does not divide by the probability. Here images
    are read in batches, and g is Fᵖ·(Fᵖᵀ1), which costs C·HW and not C²·HW.

    Source: Sastry and Oore, ICML 2020, section 3; row sums and 1e-6 are those of the authors' code.

    Raises:
        UnsupportedModelError: for a network without maps.
    """
    maps = FeatureMaps(network)

    def seen(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, K), and g of each map, (B, powers, C)."""
        found: list[Tensor] = []
        logits = maps.run(x, lambda _, m: found.append(row_sums(m, powers)))
        return logits, found

    low: list[Tensor] = []
    high: list[Tensor] = []  # (K, powers, C) each

    def deviations(x: Tensor) -> Tensor:
        """δ_l of each map (B, L), over max softmax."""
        logits, found = seen(x)
        predicted = logits.argmax(1)
        parts = [
            _outside(g, a[predicted], b[predicted])
            for g, a, b in zip(found, low, high, strict=True)
        ]
        return torch.stack(parts, 1) / logits.softmax(1).amax(1, keepdim=True)

    order = torch.arange(len(train))
    held_out = order % _HELD_OUT == _HELD_OUT - 1
    for x in batches(rows_of(train, order[~held_out])):
        logits, found = seen(x)
        if not found:
            raise maps.lacking()
        predicted = logits.argmax(1)
        if not low:
            shapes = [(logits.shape[1], *g.shape[1:]) for g in found]
            low = [logits.new_full(shape, torch.inf) for shape in shapes]
            high = [logits.new_full(shape, -torch.inf) for shape in shapes]
        for g, a, b in zip(found, low, high, strict=True):
            for k in predicted.unique():
                own = g[predicted == k]
                a[k] = torch.minimum(a[k], own.amin(0))
                b[k] = torch.maximum(b[k], own.amax(0))
    low = [torch.where(a.isinf(), a.amin(0), a) for a in low]
    high = [torch.where(b.isinf(), b.amax(0), b) for b in high]
    expected = low[0].new_ones(len(low))
    if held_out.any():
        parts = [deviations(x) for x in batches(rows_of(train, order[held_out]))]
        mean = torch.cat(parts).mean(0)
        expected = torch.where(mean > 0, mean, 1.0)

    @torch.no_grad()
    def score(x: Tensor) -> Tensor:
        return (deviations(x) / expected).sum(1).cpu()

    return Fitted(score)


def row_sums(maps: Tensor, powers: int) -> Tensor:
    """sign(s)·|s|^(1/p), (B, powers, C), of the row sums s of Fᵖ·Fᵖᵀ, for maps F (B, C, H, W)."""
    flat = maps.flatten(2)
    found = []
    for p in range(1, powers + 1):
        power = flat.pow(p)
        sums = (power @ power.sum(1).unsqueeze(2)).squeeze(2)
        found.append(sums.sign() * sums.abs().pow(1 / p))
    return torch.stack(found, 1)


def _outside(g: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far g (B, powers, C) leaves [low, high], relative to the end that it leaves, in all."""
    below, above = F.relu(low - g) / (low + 1e-6).abs(), F.relu(g - high) / (high + 1e-6).abs()
    return (below + above).flatten(1).sum(1)
