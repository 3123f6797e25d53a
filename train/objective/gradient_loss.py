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
    return mean_or_zero(torch.where(mask, norms, 0.0))
