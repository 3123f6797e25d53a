"""Detectors that compare a sample with single training samples: KNN and NNGuide.

The published numbers of neighbours, 50 (OpenOOD and the paper's CIFAR-10) and 10, are for sets with
thousands of images a class. The default is that number, but at most half the mean number of
training images a class, N/(2K), so that neighbours are of one class in a small set too.
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
    """
    from pytorch_ood.detector import KNN

    k = neighbours(k, 50, len(train), len(head.weight))
    method = KNN(None, k=k)
    method.fit_features(train, torch.zeros(len(train), dtype=torch.int64))
    return Fitted(method.predict_features, {"k": k})


def nnguide(head: Head, train: Tensor, *, k: int | None) -> Fitted:
    """Minus energy times guidance: −G(x)·E(x).

    E = logsumexp of the logits; G is the mean of the k largest E(t)·cos(z(x), z(t)) over training
    samples t. Our own kernel: pytorch-ood's keeps the training features in float32 and cannot
    multiply them with float64 ones. All training samples are used, so that no draw is needed.
    """
    k = neighbours(k, 10, len(train), len(head.weight))
    bank = F.normalize(train, dim=1) * torch.logsumexp(head.logits(train), 1)[:, None]

    def score(z: Tensor) -> Tensor:
        unit, top = F.normalize(z, dim=1), z.new_empty(len(z), 0)
        for part in bank.split(_BANK):
            top = torch.cat([top, unit @ part.T], dim=1)
            top = top.topk(min(k, top.shape[1]), dim=1).values
        return -top.mean(1) * torch.logsumexp(head.logits(z), 1)

    return Fitted(score, {"k": k})


def neighbours(k: int | None, published: int, count: int, classes: int) -> int:
    """The number of neighbours: `k` itself, or by the rule above.

    Raises:
        UsageError: if `k` exceeds `count`.
    """
    if k is None:
        return max(1, min(published, count // (2 * classes)))
    if k > count:
        raise UsageError(f"expected k <= {count}, the number of training images, but got {k}")
    return k
