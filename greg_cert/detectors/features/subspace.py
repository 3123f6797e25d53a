"""Detectors by the subspace of the training features: ViM and its residual alone, and NECO.

Our own kernels, because pytorch-ood's ViM computes in float32 and it lacks the others; a test
compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.errors import UsageError


def vim(head: Head, train: Tensor, *, dim: int | None) -> Fitted:
    """Virtual logit less energy, α·r(x) − logsumexp f(x), with r as of `residual`.

    α = mean max logit / mean r over the training samples.

    Raises:
        UsageError: if `dim` leaves no residual.

    Source: Wang et al., CVPR 2022, section 4 (the score orders as its softmax probability of the
    virtual logit does).
    """
    fitted = residual(head, train, dim=dim)
    mean = fitted.score(train).mean()
    alpha = head.logits(train).amax(1).mean() / mean if mean > 0 else 0.0
    return Fitted(
        lambda z: alpha * fitted.score(z) - torch.logsumexp(head.logits(z), 1), fitted.options
    )


def residual(head: Head, train: Tensor, *, dim: int | None) -> Fitted:
    """Norm of the features off the principal subspace, r(x) = ‖P(z − u)‖₂.

    u = −W⁺b; P projects onto the orthogonal complement of the `dim` leading directions of the
    training features about u.

    The authors take 1000 of D = 2048 and OpenOOD 256 of D = 512 for ViM, 512 for this: half. The
    default is half the rank of the training features about u, which is D/2 where no unit is dead;
    with half of D itself, a network with many dead units would leave no residual on training data
    and ViM's α infinite.

    Raises:
        UsageError: if `dim` leaves no residual.

    Source: Wang et al., CVPR 2022, section 3, where it is a baseline.
    """
    origin = -torch.linalg.pinv(head.weight) @ head.bias
    directions, rank = _principal(train - origin)
    if dim is None:
        dim = rank // 2
    elif dim >= rank:
        raise UsageError(f"expected dim < {rank}, the rank of the training features, but got {dim}")
    complement = directions[:, dim:]
    return Fitted(lambda z: ((z - origin) @ complement).norm(dim=1), {"dim": dim})


def neco(head: Head, train: Tensor, *, dim: int | None) -> Fitted:
    """Minus the share of a feature vector's length in the principal subspace, −‖Pẑ‖₂ / ‖ẑ‖₂.

    ẑ are the features less their mean and over their standard deviation on training data (over 1
    where they are constant there); P projects onto the `dim` leading principal directions of ẑ.

    The authors' code takes 100 directions. The default is 100, but at most half the rank of the
    training features: with all of them the share is 1 whatever the input. As in their code for
    ResNets, the score is not multiplied by the largest logit, as it is there for transformers.

    Source: Ben Ammar et al., ICLR 2024, and the authors' code.
    """
    mean, std = train.mean(0), train.std(0, correction=0)
    rounding = len(train) * torch.finfo(train.dtype).eps * mean.abs()
    std = torch.where(std > rounding, std, 1.0)
    directions, rank = _principal((train - mean) / std)
    dim = max(1, min(100, rank // 2)) if dim is None else dim
    leading = directions[:, :dim]

    def score(z: Tensor) -> Tensor:
        z = (z - mean) / std
        share: Tensor = (z @ leading).norm(dim=1) / z.norm(dim=1).clamp(min=1e-300)
        return -share

    return Fitted(score, {"dim": dim})


def _principal(centred: Tensor) -> tuple[Tensor, int]:
    """(D, D) orthonormal directions of features (N, D), the largest first, and the rank."""
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    smallest = values[-1].clamp(min=0.0) * len(values) * torch.finfo(values.dtype).eps
    return vectors.flip(1), int((values > smallest).sum())
