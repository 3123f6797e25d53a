"""ViM: how far features leave the subspace of the training features, as one more logit."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.errors import UsageError


def vim(head: Head, train: Tensor, *, dim: int | None) -> Fitted:
    """Virtual logit less energy, α‖P(z − u)‖₂ − logsumexp f(x).

    u = −W⁺b; P projects onto the orthogonal complement of the `dim` leading directions of the
    training features about u; α = mean max logit / mean ‖P(z − u)‖ over the training samples.

    The authors take 1000 of D = 2048 and OpenOOD 256 of D = 512: half. The default is half the rank
    of the training features about u, which is D/2 where no unit is dead; with half of D itself, a
    network with many dead units would leave no residual on training data and α infinite. Our own
    kernel, because pytorch-ood's computes in float32; a test compares the two.

    Raises:
        UsageError: if `dim` leaves no residual.

    Source: Wang et al., CVPR 2022, section 4 (the score orders as its softmax probability of the
    virtual logit does).
    """
    origin = -torch.linalg.pinv(head.weight) @ head.bias
    centred = train - origin
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(train))  # ascending
    smallest = values[-1].clamp(min=0.0) * len(values) * torch.finfo(values.dtype).eps
    rank = int((values > smallest).sum())
    if dim is None:
        dim = rank // 2
    elif dim >= rank:
        raise UsageError(f"expected dim < {rank}, the rank of the training features, but got {dim}")
    complement = vectors[:, : len(values) - dim]
    residual = (centred @ complement).norm(dim=1).mean()
    alpha = head.logits(train).amax(1).mean() / residual if rank else residual

    def score(z: Tensor) -> Tensor:
        virtual: Tensor = ((z - origin) @ complement).norm(dim=1) * alpha
        return virtual - torch.logsumexp(head.logits(z), 1)

    return Fitted(score, {"dim": dim})
