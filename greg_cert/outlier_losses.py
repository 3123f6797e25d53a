"""Losses that make a score tell auxiliary outliers from ID samples, by name.

A new one is an entry of `OUTLIER_LOSSES`. Without torch, so that configurations are checked by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from greg_cert.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def energy_margin_loss(
    id_scores: Tensor, ood_scores: Tensor, *, m_in: float, m_out: float
) -> Tensor:
    """L_S = mean max(0, S − m_in)² over ID + mean max(0, m_out − S)² over auxiliary samples.

    Args:
        id_scores: (N,) scores of ID samples; those above `m_in` are pulled down.
        ood_scores: (M,) scores of auxiliary outliers; those below `m_out` are pushed up.
        m_in: margin of ID scores, below `m_out`.
        m_out: margin of outlier scores.

    Returns:
        A scalar, in squared score units; an empty batch contributes 0.

    Raises:
        UsageError: for scores that are not one-dimensional, or margins in the wrong order.
    """
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if scores.ndim != 1:
            raise UsageError(f"expected {name} of shape (N,), but got {tuple(scores.shape)}")
    if not m_in < m_out:
        raise UsageError(f"expected m_in < m_out, but got m_in = {m_in} and m_out = {m_out}")
    return mean_or_zero((id_scores - m_in).clamp_min(0) ** 2) + mean_or_zero(
        (m_out - ood_scores).clamp_min(0) ** 2
    )


def uniform_loss(ood_logits: Tensor) -> Tensor:
    """Cross-entropy of outliers to the uniform distribution, mean of −(1/K) Σ_k log softmax_k f.

    A scalar in nats, log K at least, of logits (M, K); an empty batch contributes 0.

    Raises:
        UsageError: for logits that are not two-dimensional.
    """
    _check_logits(ood_logits)
    return mean_or_zero(ood_logits.logsumexp(1) - ood_logits.mean(1))


def absent_class_loss(ood_logits: Tensor) -> Tensor:
    """Cross-entropy of outliers to the last class, which no ID sample has.

    A scalar in nats, of logits (M, K); an empty batch contributes 0.

    Raises:
        UsageError: for logits that are not two-dimensional.
    """
    _check_logits(ood_logits)
    return mean_or_zero(ood_logits.logsumexp(1) - ood_logits[:, -1])


def openmix_loss(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Cross-entropy of mixtures λx + (1 − λ)x' to λ of the class of x and 1 − λ of the last class.

    A scalar in nats of logits (M, K), of the classes (M,) of ID images x that outliers x' were
    mixed with, and of `share` λ; the last class is that of outliers, which no ID sample has. An
    empty batch contributes 0.

    Raises:
        UsageError: for logits that are not two-dimensional.
    """
    _check_logits(logits)
    known = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return mean_or_zero(logits.logsumexp(1) - share * known - (1 - share) * logits[:, -1])


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise UsageError(f"expected ood_logits (M, K) with K >= 1, but got {tuple(logits.shape)}")


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean of (n,), 0 of none; differentiable in either case."""
    return values.mean() if values.numel() else values.sum()


class Mixture(NamedTuple):
    """What the outliers of a step are mixed with, where its loss is about mixtures."""

    labels: Tensor  # (M,), ID classes of the images that they are mixed with
    share: float  # λ, the weight of those; that of the outliers is 1 − λ


class Outputs(NamedTuple):
    """What an outlier loss may depend on, of one step."""

    id_scores: Tensor  # (N,)
    ood_scores: Tensor  # (M,)
    ood_logits: Tensor  # (M, K)
    m_in: float
    m_out: float
    mixture: Mixture | None = None


@dataclass(frozen=True)
class OutlierLoss:
    """One choice of L_S: its value, a scalar that autograd differentiates, and where it is from."""

    value: Callable[[Outputs], Tensor]
    source: str
    uses_margins: bool = False
    absent: bool = False  # whether the last logit is of a class that no ID sample has
    mixes: bool = False  # whether outliers come mixed with ID images


def _openmix(outputs: Outputs) -> Tensor:
    if outputs.mixture is None:
        raise UsageError("expected a mixture beside outlier_loss openmix, but got None")
    return openmix_loss(outputs.ood_logits, *outputs.mixture)


OUTLIER_LOSSES: dict[str, OutlierLoss] = {
    "margin": OutlierLoss(
        lambda o: energy_margin_loss(o.id_scores, o.ood_scores, m_in=o.m_in, m_out=o.m_out),
        source="Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020",
        uses_margins=True,
    ),
    "uniform": OutlierLoss(
        lambda o: uniform_loss(o.ood_logits),
        source="Hendrycks et al., Deep Anomaly Detection with Outlier Exposure, ICLR 2019",
    ),
    "absent_class": OutlierLoss(
        lambda o: absent_class_loss(o.ood_logits),
        source="Jiang et al., DOS: Diverse Outlier Sampling for OOD Detection, ICLR 2024",
        absent=True,
    ),
    "openmix": OutlierLoss(
        _openmix,
        source="Zhu et al., OpenMix: Exploring Outlier Samples for Misclassification Detection, "
        "CVPR 2023",
        absent=True,
        mixes=True,
    ),
}
