"""LINe: energy of the features and weights that matter for the predicted class alone.

pytorch-ood has no LINe. With penultimate features z and a linear head f = Wz + b, the first-order
Taylor approximation of feature i's Shapley value for logit y, with 0 as the absent feature, is
z_i·∂f_y/∂z_i = z_i·W_yi, which for a linear head is the Shapley value itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.scores import energy


class Important(NamedTuple):
    """What is kept for each class that may be predicted."""

    contributions: Tensor  # C (K, D), as `contributions` gives
    features: Tensor  # (K, D) bool, the features kept
    threshold: Tensor  # (K,), above which |C_k|·W has to be for a weight to be kept


def line(
    head: Head,
    train: Tensor,
    labels: Tensor,
    *,
    p_a: float | None,
    p_w: float | None,
    clip: float | None,
) -> Fitted:
    """−logsumexp of the logits that `line_logits` gives.

    The authors prune features at p_a = 0.9 for CIFAR-10 and 0.1 for CIFAR-100 and ImageNet, and
    weights at p_w = 0.9, 0.9 and 0.1; the default goes by the number of classes: p_a = 0.9 up to
    10, p_w = 0.9 up to 100, else 0.1. They clip at 1.0 and 0.8, in the unit of their networks'
    features; the default is the 90th percentile of all training features, ReAct's own rule.

    Source: Ahn et al., CVPR 2023 (arXiv 2303.13995), section 3, and the authors' settings.
    """
    p_a = (0.9 if len(head.weight) <= 10 else 0.1) if p_a is None else p_a
    p_w = (0.9 if len(head.weight) <= 100 else 0.1) if p_w is None else p_w
    if clip is None:
        clip = float(np.quantile(train.numpy(), 0.9))
    kept = important(head, contributions(head, train, labels), p_a, p_w)
    level = clip
    return Fitted(
        lambda z: energy(line_logits(head, kept, z, level)), {"p_a": p_a, "p_w": p_w, "clip": clip}
    )


def contributions(head: Head, train: Tensor, labels: Tensor) -> Tensor:
    """C (K, D): mean of z_i·W_ki over the training samples (N, D) of class k; 0 without any."""
    means = torch.zeros_like(head.weight)
    for k in labels.unique():
        means[k] = train[labels == k].mean(0)
    return means * head.weight


def important(head: Head, shares: Tensor, p_a: float, p_w: float) -> Important:
    """Features and weights whose contribution (K, D) is above the percentile, for each class.

    For class k: the features with C_ki above the `p_a`-quantile of C_k, and the weights W_ji with
    |C_ki|·W_ji above the `p_w`-quantile of all K·D of these.
    """
    features = shares > torch.from_numpy(np.quantile(shares.numpy(), p_a, axis=1))[:, None]
    weighted = (np.quantile((row.abs() * head.weight).numpy(), p_w) for row in shares)
    return Important(shares, features, torch.tensor([float(v) for v in weighted]).to(shares))


def line_logits(head: Head, kept: Important, z: Tensor, clip: float) -> Tensor:
    """(B, K) logits of features (B, D) clipped at `clip`, then pruned for the class they predict.

    The class is predicted from the clipped features by the whole head; only then are its features
    and its weights the only ones left. The bias stays.
    """
    z = z.clamp(max=clip)
    predicted = head.logits(z).argmax(1)
    logits = z.new_empty(len(z), len(head.weight))
    for k in predicted.unique():
        mine = predicted == k
        heavy = kept.contributions[k].abs() * head.weight > kept.threshold[k]
        weight = torch.where(heavy & kept.features[k], head.weight, 0.0)
        logits[mine] = z[mine] @ weight.T + head.bias
    return logits
