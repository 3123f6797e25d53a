"""Detectors that compare a sample with single training samples: KNN and NNGuide.

Both take all training samples, so that none has to be drawn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.errors import UsageError

_BANK = 4096  # training features compared at once


def knn(head: Head, train: Tensor, *, k: int | None) -> Fitted:
    """Euclidean distance to the k-th nearest training sample, all features at length 1.

    By pytorch-ood and scikit-learn. A feature vector of zeros stays one.

    The published k, 50 (OpenOOD and the paper's CIFAR-10), is for sets with thousands of images a
    class. The default is 50, but at most half the mean number of training images a class, N/(2K),
    so that neighbours are of one class in a small set too.

    Raises:
        UsageError: if `k` exceeds the number of training images.
    """
    from pytorch_ood.detector import KNN

    if k is None:
        k = max(1, min(50, len(train) // (2 * len(head.weight))))
    if k > len(train):
        raise UsageError(
            f"detector knn: expected k <= {len(train)}, the number of training images, but got {k}"
        )
    method = KNN(None, k=k)
    method.fit_features(train, torch.zeros(len(train), dtype=torch.int64))
    return Fitted(method.predict_features, {"k": k})


def nnguide(head: Head, train: Tensor, *, k: int) -> Fitted:
    """Minus energy times guidance: −G(x)·E(x).

    E = logsumexp of the logits; G is the mean of the k largest E(t)·cos(z(x), z(t)) over training
    samples t. Our own kernel: pytorch-ood's keeps the training features in float32 and cannot
    multiply them with float64 ones.

    The authors' k is 10, with a bank of 1 % of ImageNet, 12.8 images a class; OpenOOD takes 100.

    Source: Park et al., ICCV 2023, and the authors' code.
    """
    k = min(k, len(train))
    bank = F.normalize(train, dim=1) * torch.logsumexp(head.logits(train), 1)[:, None]

    def score(z: Tensor) -> Tensor:
        unit, top = F.normalize(z, dim=1), z.new_empty(len(z), 0)
        for part in bank.split(_BANK):
            top = torch.cat([top, unit @ part.T], dim=1)
            top = top.topk(min(k, top.shape[1]), dim=1).values
        return -top.mean(1) * torch.logsumexp(head.logits(z), 1)

    return Fitted(score, {"k": k})
