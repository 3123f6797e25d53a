"""The terms of the GReg objective, as pure functions of scores and gradient norms.

Source: Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024, section 3;
the value loss is that of Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError


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
    return _mean((id_scores - m_in).clamp_min(0) ** 2) + _mean(
        (m_out - ood_scores).clamp_min(0) ** 2
    )


def uniform_loss(ood_logits: Tensor) -> Tensor:
    """Cross-entropy of outliers to the uniform distribution, mean of −(1/K) Σ_k log softmax_k f.

    Args:
        ood_logits: (M, K) logits of auxiliary outliers.

    Returns:
        A scalar in nats, log K at least; an empty batch contributes 0.

    Raises:
        UsageError: for logits that are not two-dimensional.

    Source: Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019.
    """
    _check_logits(ood_logits)
    return _mean(torch.logsumexp(ood_logits, dim=1) - ood_logits.mean(1))


def absent_class_loss(ood_logits: Tensor) -> Tensor:
    """Cross-entropy of outliers to the last class, which no ID sample has.

    Args:
        ood_logits: (M, K) logits of auxiliary outliers.

    Returns:
        A scalar in nats; an empty batch contributes 0.

    Raises:
        UsageError: for logits that are not two-dimensional.

    Source: Jiang et al., "DOS: Diverse Outlier Sampling for Out-of-Distribution Detection",
    ICLR 2024.
    """
    _check_logits(ood_logits)
    return _mean(torch.logsumexp(ood_logits, dim=1) - ood_logits[:, -1])


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise UsageError(f"expected ood_logits (M, K) with K >= 1, but got {tuple(logits.shape)}")


def correctly_detected(scores: Tensor, is_id: Tensor, *, m_in: float, m_out: float) -> Tensor:
    """Samples (B,) whose score is past its margin already: S ≤ m_in for ID, S ≥ m_out for others.

    Only these are smoothed: elsewhere the slope is still needed to move the value.
    """
    return (is_id & (scores <= m_in)) | (~is_id & (scores >= m_out))


def gradient_loss(
    id_norms: Tensor,
    id_correct: Tensor,
    ood_norms: Tensor,
    ood_correct: Tensor,
    *,
    scaling: str = "paper",
) -> Tensor:
    """L_∇ = mean 1{correct}·‖∇S‖ over ID + the same over auxiliary samples.

    Args:
        id_norms: (N,) gradient norms ‖∇_x S‖₂ of ID samples.
        id_correct: (N,) bool, S ≤ m_in.
        ood_norms: (M,) gradient norms of auxiliary samples.
        ood_correct: (M,) bool, S ≥ m_out.
        scaling: `paper`, or `reference`: divided by N + M. The authors' code averages, over all
            samples, norms of the gradient of a loss that is itself a sum of two means.

    Returns:
        A scalar, in score units per pixel unit. The means run over all samples, masked or not.

    Raises:
        UsageError: for shapes that do not match, or an unknown scaling.
    """
    if scaling not in ("paper", "reference"):
        raise UsageError(f"expected scaling in paper, reference, but got {scaling!r}")
    total = _masked_mean(id_norms, id_correct) + _masked_mean(ood_norms, ood_correct)
    if scaling == "paper":
        return total
    return total / max(1, len(id_norms) + len(ood_norms))


def _masked_mean(norms: Tensor, mask: Tensor) -> Tensor:
    if norms.ndim != 1 or mask.shape != norms.shape:
        raise UsageError(
            "expected norms (N,) and a mask of the same shape, "
            f"but got {tuple(norms.shape)} and {tuple(mask.shape)}"
        )
    # Not a product: a masked sample must not matter even where its norm is infinite.
    return _mean(torch.where(mask, norms, 0.0))


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()
