"""OOD scores of logits: higher means more out-of-distribution, for every score."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    _check(logits, 1)
    return -torch.logsumexp(logits, dim=1)


def max_softmax(logits: Tensor) -> Tensor:
    """Negative maximum softmax probability, S(x) = −max softmax f(x); higher = more OOD.

    Args:
        logits: (B, K) class logits.

    Returns:
        (B,) scores in [−1, −1/K].

    Raises:
        UsageError: as `energy`.

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples", ICLR 2017.
    """
    _check(logits, 1)
    return -torch.softmax(logits, dim=1).amax(1)


def max_logit(logits: Tensor) -> Tensor:
    """Negative maximum logit, S(x) = −max f(x); higher = more OOD.

    Args:
        logits: (B, K) class logits.

    Returns:
        (B,) scores, in the unit of the logits.

    Raises:
        UsageError: as `energy`.

    Source: Hendrycks et al., "Scaling Out-of-Distribution Detection", ICML 2022.
    """
    _check(logits, 1)
    return -logits.amax(1)


def absent_class(logits: Tensor) -> Tensor:
    """Log-odds of an absent class, the last: S(x) = f_K − logsumexp(f_1 … f_{K−1}).

    It orders inputs as the absent class's softmax probability does, without saturating.

    Args:
        logits: (B, K) logits with K ≥ 2, the last of the class that no ID sample has.

    Returns:
        (B,) scores in nats; higher = more OOD.

    Raises:
        UsageError: if `logits` is not two-dimensional with at least two classes.

    Source: the probability is the score of Jiang et al., "DOS: Diverse Outlier Sampling for
    Out-of-Distribution Detection", ICLR 2024.
    """
    _check(logits, 2)
    return logits[:, -1] - torch.logsumexp(logits[:, :-1], dim=1)


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "energy": energy,
    "max_softmax": max_softmax,
    "max_logit": max_logit,
    "absent_class": absent_class,
}


def score_of(name: str) -> Callable[[Tensor], Tensor]:
    """The score function (B, K) → (B,) of that name.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in SCORES:
        raise UsageError(f"expected score in {', '.join(SCORES)}, but got {name!r}")
    return SCORES[name]


def _check(logits: Tensor, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise UsageError(
            f"expected logits of shape (B, K) with K >= {classes}, but got {tuple(logits.shape)}"
        )
