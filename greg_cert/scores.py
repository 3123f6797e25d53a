"""OOD scores of logits: higher means more out-of-distribution, for every score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from greg_cert.errors import UsageError

if TYPE_CHECKING:  # names and kinds of scores are told without torch
    from torch import Tensor


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
    return -logits.logsumexp(1)


def max_softmax(logits: Tensor) -> Tensor:
    """Negative maximum softmax probability, S(x) = −max softmax f(x); higher = more OOD.

    Scores (B,) in [−1, −1/K] of logits (B, K); errors as of `energy`.

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples", ICLR 2017.
    """
    _check(logits, 1)
    return -logits.softmax(1).amax(1)


def max_logit(logits: Tensor) -> Tensor:
    """Negative maximum logit, S(x) = −max f(x); higher = more OOD.

    Scores (B,), in the unit of the logits (B, K); errors as of `energy`.

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
    return logits[:, -1] - logits[:, :-1].logsumexp(1)


@dataclass(frozen=True)
class Score:
    """An OOD score as data: goals, slopes and constants of proofs follow from its kind.

    Every score is −log-sum-exp, or −maximum, of shifted logits z_j = f_j − s·f, or follows from it.

    Attributes:
        title: in words.
        value: logits (B, K) to scores (B,); its docstring has the source.
        soft: log-sum-exp, or else maximum.
        absent: the last logit is of a class that no ID sample has: z_j = f_j − f_K for all others.
        relative: −exp(−log-sum-exp) of z_j = f_j − f_k for the predicted class k.
    """

    title: str
    value: Callable[[Tensor], Tensor]
    soft: bool = True
    absent: bool = False
    relative: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (B,) of logits (B, K)."""
        return self.value(logits)

    def classes(self, outputs: int) -> int:
        """ID classes of a model with so many logits."""
        return outputs - self.absent


SCORES: Mapping[str, Score] = {
    "energy": Score("energy", energy),
    "max_softmax": Score("maximum softmax probability", max_softmax, relative=True),
    "max_logit": Score("maximum logit", max_logit, soft=False),
    "absent_class": Score("absent class", absent_class, absent=True),
}


def score_of(name: str) -> Score:
    """The score of that name.

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
