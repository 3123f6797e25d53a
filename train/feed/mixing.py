"""Mixtures of ID images and outliers, for losses that are about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from greg_cert.outlier_losses import Mixture
from greg_cert.seeded import generator_for
from greg_cert.train.objective.step import Batch


def mixing_share(alpha: float, *key: int) -> float:
    """λ ~ Beta(α, α) of a step, the share of its ID images; follows from the key alone."""
    seed = generator_for(torch.device("cpu"), *key).initial_seed()
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def mixed(batch: Batch, share: float, *, smoothed: bool) -> Batch:
    """A batch whose outliers for L_S are mixtures λx + (1 − λ)x' with its ID images, in order.

    Of M outliers and N ID images, number j is mixed with image ⌊jN/M⌋, so that processes that share
    a batch make the same mixtures. Where `smoothed`, the outliers themselves stay those of L_∇;
    else they are dropped, as nothing asks for them.

    Source: Zhu et al., "OpenMix: Exploring Outlier Samples for Misclassification Detection", CVPR
    2023, and its authors' code, which draws one λ for the whole step.
    """
    if batch.low is None:
        return batch
    count, m = len(batch.images), len(batch.low)
    pairs = torch.arange(m, device=batch.low.device) * count // max(1, m)
    low = share * batch.images[pairs] + (1 - share) * batch.low
    high = batch.high if smoothed else low
    return replace(batch, low=low, high=high, mixture=Mixture(batch.labels[pairs], share))
