"""OOD scores of logits: higher means more out-of-distribution, for every score."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError


def energy(logits: Tensor) -> Tensor:
    """Free energy of the logits, S(x) = −logsumexp f(x); higher = more OOD.

    Args:
        logits: (B, K) class logits.

    Returns:
        (B,) scores, in the unit of the logits (nats).

    Raises:
        UsageError: if `logits` is not two-dimensional with at least one class.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, eq. 4 (T = 1).
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise UsageError(
            f"expected logits of shape (B, K) with K >= 1, but got {tuple(logits.shape)}"
        )
    return -torch.logsumexp(logits, dim=1)
