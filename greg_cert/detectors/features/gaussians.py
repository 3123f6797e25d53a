"""Mahalanobis distances to the classes' training features, and the same less a background's.

Our own kernels. pytorch-ood's sum in float32 and invert with a ridge of 1e-6, which is decided by
rounding where features are constant on ID data (units that never fire), and its Mahalanobis refuses
labels that skip a class. Here the covariance is inverted on the directions in which training
features vary at all, as OpenOOD does; a class without a sample has no centre. On well-conditioned
features the two agree up to a factor, which a test says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head


def mds(head: Head, train: Tensor, labels: Tensor) -> Fitted:
    """Squared Mahalanobis distance to the nearest class mean, min_k (z − μ_k)ᵀ Σ⁺ (z − μ_k).

    Σ is the covariance within classes, shared by them, with division by N.

    Source: Lee et al., NeurIPS 2018, eq. 1 and 2, without its input noise and its other layers.
    """
    means, within = _class_means(train, labels)
    root = _inverse_root(within)
    return Fitted(lambda z: _squared_distances(z, means, root).amin(1))


def mdspp(head: Head, train: Tensor, labels: Tensor) -> Fitted:
    """Mahalanobis++: `mds` of features at length 1, in fitting and in scoring.

    Source: Mueller and Hein, ICML 2025. A feature vector of zeros stays one.
    """
    plain = mds(head, F.normalize(train, dim=1), labels).score
    return Fitted(lambda z: plain(F.normalize(z, dim=1)))


def rmds(head: Head, train: Tensor, labels: Tensor) -> Fitted:
    """Relative Mahalanobis distance, min_k d_k(z) − d₀(z).

    d_k is as for `mds`; d₀ is the squared distance to the mean of all features under their own
    covariance.
    """
    means, within = _class_means(train, labels)
    mean = train.mean(0, keepdim=True)
    root, background = _inverse_root(within), _inverse_root(train - mean)

    def score(z: Tensor) -> Tensor:
        d_0 = _squared_distances(z, mean, background)[:, 0]
        return _squared_distances(z, means, root).amin(1) - d_0

    return Fitted(score)


def _class_means(train: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(k, D) means of the classes that have samples, and the features less their class's mean."""
    classes, index = labels.unique(return_inverse=True)
    means = torch.stack([train[index == i].mean(0) for i in range(len(classes))])
    return means, train - means[index]


def _inverse_root(centred: Tensor) -> Tensor:
    """R (D, r) with RRᵀ the pseudo-inverse of the covariance (1/N)XᵀX of centred features X."""
    covariance = centred.T @ centred / len(centred)
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[-1].clamp(min=0.0)
    kept = values > largest * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors[:, kept] / values[kept].sqrt()
    return root


def _squared_distances(z: Tensor, means: Tensor, root: Tensor) -> Tensor:
    """(B, k) squared distances of features (B, D), without the cancellation of a matrix product."""
    return torch.stack([((z - mean) @ root).square().sum(1) for mean in means], dim=1)
