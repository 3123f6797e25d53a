"""Detectors that shape the features of a sample and take the energy of what the head makes of them.

ReAct is pytorch-ood's. ASH, SCALE and LTS are our own kernels: pytorch-ood's take 4-D maps, keep no
feature at all where D is small (D = 4 at 0.9), and give NaN for a sample whose features are all 0.
On other samples with features ≥ 0 the two agree, which a test says.

ASH, SCALE and LTS compare sums of features and are made for features ≥ 0, behind a ReLU. Where some
are negative (a transformer), the sums here are over the positive parts, as in LTS's own code, so
that the ratio stays in [1, D/kept].
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.scores import energy


def react(head: Head, train: Tensor, *, percentile: float) -> Fitted:
    """Energy of the features clipped from above at a percentile of all training features."""
    from pytorch_ood.detector import ReAct

    method = ReAct(backbone=None, head=head.logits, percentile=percentile)
    method.fit_feature_maps(train, torch.zeros(len(train), dtype=torch.int64))
    return Fitted(method.predict_feature_maps)


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


def sum_ratio(z: Tensor, percentile: float) -> Tensor:
    """s₁/s₂ (B, 1) of features (B, D): all positive parts over those of the largest features.

    At least 1; exactly 1 for a row without a positive feature.
    """
    positive = z.clamp(min=0)
    all_of_them = positive.sum(1, keepdim=True)
    largest = positive.gather(1, _largest(z, percentile)).sum(1, keepdim=True)
    return torch.where(largest > 0, all_of_them / largest.clamp(min=1e-300), 1.0)


def _largest(z: Tensor, percentile: float) -> Tensor:
    """Positions (B, n) of the n = D − round(D·percentile) ≥ 1 largest features of each row."""
    size = z.shape[1]
    return z.topk(max(1, size - round(size * percentile)), dim=1).indices
