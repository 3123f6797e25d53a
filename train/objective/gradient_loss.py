"""L_∇, the gradient loss of GReg, as a pure function of scores and gradient norms.

Source: Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.outlier_losses import mean_or_zero


def correctly_detected(scores: Tensor, is_id: Tensor, *, m_in: float, m_out: float) -> Tensor:
    """Samples (B,) whose score is past its margin already: S ≤ m_in for ID, S ≥ m_out for others.

    Only these are smoothed: elsewhere the slope is still needed to move the value.
    """
    return (is_id & (scores <= m_in)) | (~is_id & (scores >= m_out))


def gradient_loss(
    id_norms: Tensor, id_correct: Tensor, ood_norms: Tensor, ood_correct: Tensor
) -> Tensor:
    """L_∇ = mean 1{correct}·‖∇S‖ over ID + the same over auxiliary samples.

    Args:
        id_norms: (N,) gradient norms ‖∇_x S‖₂ of ID samples.
        id_correct: (N,) bool, S ≤ m_in.
        ood_norms: (M,) gradient norms of auxiliary samples.
        ood_correct: (M,) bool, S ≥ m_out.

    Returns:
        A scalar, in score units per pixel unit. The means run over all samples, masked or not.

    Raises:
        UsageError: for shapes that do not match.
    """
    return _masked_mean(id_norms, id_correct) + _masked_mean(ood_norms, ood_correct)


def smoothed_score(
    id_scores: Tensor, id_correct: Tensor, ood_scores: Tensor, ood_correct: Tensor
) -> Tensor:
    """Scores past their margin: mean 1{correct}·S over ID + the same over auxiliary samples.

    The authors' code (github.com/o4lc/Greg-OOD, train_sea.py) differentiates this one number by
    the whole batch, as mean −relu(m_in − S) + mean relu(S − m_out), and penalises the mean, over
    all N + M rows, of the norms of the rows of that gradient. Where samples share statistics every
    row has a slope, also one that is not past its margin.

    A scalar, of scores and masks as the norms and masks of `gradient_loss`, whose errors it has.
    """
    return _masked_mean(id_scores, id_correct) + _masked_mean(ood_scores, ood_correct)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    if values.ndim != 1 or mask.shape != values.shape:
        raise UsageError(
            "expected norms or scores (N,) and a mask of the same shape, "
            f"but got {tuple(values.shape)} and {tuple(mask.shape)}"
        )
    # Not a product: a masked sample must not matter even where its value is infinite.
    return mean_or_zero(torch.where(mask, values, 0.0))
