"""Detectors that compare a sample with its predicted class or the mean: SHE, fDBD and NCI.

Our own kernels: pytorch-ood's SHE fails where a class has no correctly classified sample, and its
fDBD and NCI compute in float32 and need a head in float32. Tests compare them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head


def she(head: Head, train: Tensor, labels: Tensor) -> Fitted:
    """Simplified Hopfield energy, −z·S_ŷ, with ŷ the predicted class.

    S_k is the mean feature vector of the training samples of class k that are classified as k, and
    0 where there are none: such a class remembers nothing, and with features ≥ 0 its score 0 is the
    most OOD there is.
    """
    predicted = head.logits(train).argmax(1)
    patterns = torch.zeros_like(head.weight)
    for k in labels[predicted == labels].unique():
        patterns[k] = train[(labels == k) & (predicted == k)].mean(0)
    return Fitted(lambda z: -(z * patterns[head.logits(z).argmax(1)]).sum(1))


def fdbd(head: Head, train: Tensor) -> Fitted:
    """Minus the mean distance to the decision boundaries over the distance to the training mean.

    −mean over c ≠ ŷ of |f_ŷ − f_c| / ‖w_ŷ − w_c‖₂, divided by ‖z − μ‖₂. Classes whose weights
    equal those of ŷ have no boundary with it and are left out.
    """
    mean = train.mean(0)
    gaps = torch.cdist(head.weight, head.weight, compute_mode="donot_use_mm_for_euclid_dist")
    inverse = torch.where(gaps > 0, 1 / gaps, 0.0)  # (K, K), 0 on the diagonal
    boundaries = (gaps > 0).sum(1).clamp(min=1)

    def score(z: Tensor) -> Tensor:
        logits = head.logits(z)
        best, y = logits.max(1)
        distance: Tensor = ((best[:, None] - logits) * inverse[y]).sum(1) / boundaries[y]
        away: Tensor = (z - mean).norm(dim=1).clamp(min=1e-12)
        return -distance / away

    return Fitted(score)


def nci(head: Head, train: Tensor, *, alpha: float) -> Fitted:
    """Neural-collapse score, −w_ŷ·(z − μ)/‖z − μ‖₂ − α‖z‖₁, with ŷ the predicted class."""
    mean = train.mean(0)

    def score(z: Tensor) -> Tensor:
        centred = z - mean
        along: Tensor = (head.weight[head.logits(z).argmax(1)] * centred).sum(1)
        length: Tensor = centred.norm(dim=1).clamp(min=1e-12)
        return -along / length - alpha * z.abs().sum(1)

    return Fitted(score)
