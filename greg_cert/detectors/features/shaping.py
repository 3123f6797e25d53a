"""Detectors that shape the features of a sample and score what the head makes of them.

ReAct is pytorch-ood's. VRA is our own: pytorch-ood's and OpenOOD's lift features below the lower
threshold to it, where the authors set them to 0. It has no OptFS. ASH, SCALE and LTS are our own
kernels: pytorch-ood's take 4-D maps, keep no feature at all where D is small (D = 4 at 0.9), and
give NaN for a sample whose features are all 0. On other samples with features ≥ 0 the two agree,
which a test says.

ASH, SCALE and LTS compare sums of features and are made for features ≥ 0, behind a ReLU. Where some
are negative (a transformer), the sums here are over the positive parts, as in LTS's own code, so
that the ratio stays in [1, D/kept].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.errors import UsageError
from greg_cert.scores import energy


def react(head: Head, train: Tensor, *, percentile: float) -> Fitted:
    """Energy of the features clipped from above at a percentile of all training features."""
    from pytorch_ood.detector import ReAct

    method = ReAct(backbone=None, head=head.logits, percentile=percentile)
    method.fit_feature_maps(train, torch.zeros(len(train), dtype=torch.int64))
    return Fitted(method.predict_feature_maps)


def vra(head: Head, train: Tensor, *, low: float, high: float) -> Fitted:
    """VRA: energy of features set to 0 below a percentile of theirs, and clipped at a higher one.

    z_d becomes 0 below α_d, β_d above β_d and is left between, with α_d and β_d the `low` and
    `high` percentile of feature d on training data. The variant without amplification (VRA+) and
    without a score of its own (VRA++), which others call VRA-P. The percentiles are those of the
    authors' command for CIFAR-10; for CIFAR-100 `high` is 0.95 there.

    Raises:
        UsageError: if `low` exceeds `high`.

    Source: Xu et al., NeurIPS 2023, and the authors' code.
    """
    if low > high:
        raise UsageError(f"detector vra: expected low <= high, {high:g}, but got {low:g}")
    alpha, beta = (torch.from_numpy(v) for v in np.quantile(train.numpy(), (low, high), axis=0))
    return Fitted(lambda z: energy(head.logits(torch.where(z < alpha, 0.0, z.minimum(beta)))))


def optfs(head: Head, train: Tensor, *, bins: int, tail: float) -> Fitted:
    """OptFS: −Σ_d w_ŷd·θ(z_d)·z_d with the shaping function θ that suits training data best.

    θ is constant on each of `bins` equal intervals between the `tail` and 1 − `tail` percentiles of
    all training features, and 0 outside. Its value on interval i is proportional to the mean over
    training samples of Σ w_ŷd·z_d over the features that fall there, with ‖θ‖₂ = 1: of all such
    functions it has the largest mean logit of the predicted class. ŷ is predicted from the features
    as they are. The authors' own score ("vanilla"), not their variant by energy.

    Source: Zhao et al., ICLR 2024, and the authors' code.
    """
    low, high = (float(v) for v in np.quantile(train.numpy(), (tail, 1 - tail)))
    width = max((high - low) / bins, 1e-300)

    def shared(z: Tensor) -> tuple[Tensor, Tensor]:
        """What each feature adds to the predicted logit, (B, D), and its interval or `bins`."""
        inside = (z >= low) & (z < high)
        where = torch.where(inside, ((z - low) / width).floor().clamp(0, bins - 1), bins)
        return head.weight[head.logits(z).argmax(1)] * z, where.long()

    added, where = shared(train)
    theta = train.new_zeros(bins + 1).index_add(0, where.flatten(), added.flatten())
    theta[bins] = 0.0
    theta = theta / theta.norm().clamp(min=1e-300)

    def score(z: Tensor) -> Tensor:
        added, where = shared(z)
        total: Tensor = (added * theta[where]).sum(1)
        return -total

    return Fitted(score)


def ash(head: Head, *, percentile: float) -> Fitted:
    """ASH-S: the smallest features set to 0, the others multiplied by exp(s₁/s₂); then energy.

    s₁ and s₂ are the sums before and after. The kept share is 1 − `percentile`, at least one
    feature. (OpenOOD calls ASH-B `ash`.)
    """

    def score(z: Tensor) -> Tensor:
        kept = prune(z, percentile)
        return energy(head.logits(kept * sum_ratio(z, percentile).exp()))

    return Fitted(score)


def ash_b(head: Head, *, percentile: float) -> Fitted:
    """ASH-B: the smallest features set to 0, the n others to s₁/n each; then energy."""

    def score(z: Tensor) -> Tensor:
        kept = _largest(z, percentile)
        level = z.clamp(min=0).sum(1, keepdim=True) / kept.shape[1]
        return energy(head.logits(torch.zeros_like(z).scatter(1, kept, level.expand(kept.shape))))

    return Fitted(score)


def ash_p(head: Head, *, percentile: float) -> Fitted:
    """ASH-P: the smallest features set to 0, the others left; then energy."""
    return Fitted(lambda z: energy(head.logits(prune(z, percentile))))


def scale(head: Head, *, percentile: float) -> Fitted:
    """SCALE: all features multiplied by exp(s₁/s₂), none set to 0; then energy.

    s₁ is the sum of all features, s₂ that of the largest 1 − `percentile` of them.
    """
    return Fitted(lambda z: energy(head.logits(z * sum_ratio(z, percentile).exp())))


def lts(head: Head, *, percentile: float) -> Fitted:
    """LTS: the logits multiplied by (s₁/s₂)², with s₁ and s₂ as for SCALE; then energy."""
    return Fitted(lambda z: energy(head.logits(z) * sum_ratio(z, percentile).square()))


def prune(z: Tensor, percentile: float) -> Tensor:
    """(B, D) features with all but the largest 1 − `percentile` of each row set to 0."""
    kept = _largest(z, percentile)
    return torch.zeros_like(z).scatter(1, kept, z.gather(1, kept))


def sum_ratio(z: Tensor, percentile: float | Tensor) -> Tensor:
    """s₁/s₂ (B, 1) of features (B, D): all positive parts over those of the largest features.

    At least 1; exactly 1 for a row without a positive feature. The largest are all but a share
    `percentile`, one number or (B, 1), of them, and at least one.
    """
    sums = z.clamp(min=0).sort(dim=1, descending=True).values.cumsum(1)  # of the 1 … D largest
    kept = z.shape[1] - torch.as_tensor(z.shape[1] * percentile).round().long()
    largest = sums.gather(1, kept.clamp(min=1).expand(len(z), 1) - 1)
    return torch.where(largest > 0, sums[:, -1:] / largest.clamp(min=1e-300), 1.0)


def _largest(z: Tensor, percentile: float) -> Tensor:
    """Positions (B, n) of the n = D − round(D·percentile) ≥ 1 largest features of each row."""
    size = z.shape[1]
    return z.topk(max(1, size - round(size * percentile)), dim=1).indices
