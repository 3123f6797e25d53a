"""From counts to radii: the confidence bound and the radius of randomised smoothing."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.radius.sampled.samples import check_count


def clopper_pearson_lower(count: Tensor, n: int, alpha: float) -> Tensor:
    """Lower bound p (B,) of a probability from `count` (B,) successes in `n` independent trials.

    It exceeds the true probability with probability ≤ `alpha`, whatever that is: p is where so many
    successes or more have probability `alpha`, the `alpha` quantile of Beta(count, n − count + 1);
    0 without a success. Exact, one-sided (Clopper and Pearson, Biometrika 1934), in float64.

    Raises:
        UsageError: for a count outside 0…n, n < 1 or alpha outside (0, 1).
    """
    check_count("n", n, 1)
    if not 0 < alpha < 1:
        raise UsageError(f"expected 0 < alpha < 1, but got {alpha}")
    if bool(((count < 0) | (count > n)).any()):
        raise UsageError(f"expected counts from 0 to n = {n}, but got {count.tolist()}")
    k = count.cpu().numpy().astype(np.float64)
    quantile = special.betaincinv(np.maximum(k, 1.0), n - np.maximum(k, 1.0) + 1, alpha)
    return torch.as_tensor(np.where(k > 0, quantile, 0.0), device=count.device)


def smoothing_radius(p_lower: Tensor, sigma: float) -> Tensor:
    """The ℓ2 radius σ·Φ⁻¹(p) (B,) within which a decision of probability ≥ p stays the majority.

    NaN where p ≤ 1/2: no decision, hence no radius. For every perturbation strictly shorter than it
    the decision keeps a probability above 1/2 under noise N(0, σ²I) (Cohen, Rosenfeld and Kolter,
    ICML 2019, Theorem 1 with p_B = 1 − p_A; for two decisions the bound is tight).
    """
    p = p_lower.double()
    return torch.where(p > 0.5, sigma * torch.special.ndtri(p), math.nan)


def linf_radius(l2_radius: Tensor, dimension: int) -> Tensor:
    """The radius r/√d of the largest ℓ∞ ball in an ℓ2 ball of radius r, in d = `dimension`."""
    check_count("dimension", dimension, 1)
    return l2_radius / math.sqrt(dimension)
