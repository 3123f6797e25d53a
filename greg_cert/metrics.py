"""Detection and classification metrics; OOD is the high end of every score.

The arrays are small (one number a sample), so all of it runs in numpy float64. The areas come from
scikit-learn, which handles ties as the definitions ask.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from greg_cert.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]


def threshold_at_tpr(id_scores: ArrayLike | Tensor, tpr: float = 0.95) -> float:
    """Smallest observed score γ such that at least a share `tpr` of `id_scores` is ≤ γ.

    Args:
        id_scores: (N,) scores of in-distribution samples, from a calibration split.
        tpr: share of ID samples to accept, in (0, 1].

    Returns:
        γ; a sample is accepted as ID iff its score is ≤ γ.

    Raises:
        UsageError: for an empty or non-finite array, or `tpr` outside (0, 1].
    """
    scores = _as_scores(id_scores, "id_scores")
    if not 0.0 < tpr <= 1.0:
        raise UsageError(f"expected 0 < tpr <= 1, but got {tpr}")
    n = scores.size
    # The nearest integer to tpr·n is tried first: 0.95 · 20 must ask for 19 samples, not for 20.
    wanted = round(tpr * n)
    if not math.isclose(wanted, tpr * n, rel_tol=1e-12, abs_tol=1e-12):
        wanted = math.ceil(tpr * n)
    return float(np.sort(scores)[max(wanted, 1) - 1])


def fpr_at_tpr(
    id_scores: ArrayLike | Tensor, ood_scores: ArrayLike | Tensor, tpr: float = 0.95
) -> float:
    """Share of OOD samples accepted as ID when a share `tpr` of ID samples is accepted.

    The convention of the paper (and of energy_ood and DOS): recall is counted on ID samples.
    `fpr_at_ood_recall` is the other one. Arguments and errors as for `threshold_at_tpr`.
    """
    ood = _as_scores(ood_scores, "ood_scores")
    return float(np.mean(ood <= threshold_at_tpr(id_scores, tpr)))


def fpr_at_ood_recall(
    id_scores: ArrayLike | Tensor, ood_scores: ArrayLike | Tensor, recall: float = 0.95
) -> float:
    """Share of ID samples rejected when a share `recall` of OOD samples is rejected.

    The convention of OpenOOD and pytorch-ood, reported as `fpr95_ood_recall`.
    """
    ids = _as_scores(id_scores, "id_scores")
    ood = _as_scores(ood_scores, "ood_scores")
    return float(np.mean(ids >= -threshold_at_tpr(-ood, recall)))


def auroc(id_scores: ArrayLike | Tensor, ood_scores: ArrayLike | Tensor) -> float:
    """Probability that an OOD sample scores above an ID sample, ties counted one half."""
    from sklearn.metrics import roc_auc_score

    scores, is_ood = _joined(id_scores, ood_scores)
    return float(roc_auc_score(is_ood, scores))


def aupr_in(id_scores: ArrayLike | Tensor, ood_scores: ArrayLike | Tensor) -> float:
    """Average precision with ID as the positive class."""
    from sklearn.metrics import average_precision_score

    scores, is_ood = _joined(id_scores, ood_scores)
    return float(average_precision_score(~is_ood, -scores))


def aupr_out(id_scores: ArrayLike | Tensor, ood_scores: ArrayLike | Tensor) -> float:
    """Average precision with OOD as the positive class."""
    from sklearn.metrics import average_precision_score

    scores, is_ood = _joined(id_scores, ood_scores)
    return float(average_precision_score(is_ood, scores))


def detection_metrics(
    id_scores: ArrayLike | Tensor, ood_scores: ArrayLike | Tensor
) -> dict[str, float]:
    """All detection metrics of one OOD set, by the names used in `summary.json`."""
    return {
        "fpr95": fpr_at_tpr(id_scores, ood_scores),
        "fpr95_ood_recall": fpr_at_ood_recall(id_scores, ood_scores),
        "auroc": auroc(id_scores, ood_scores),
        "aupr_in": aupr_in(id_scores, ood_scores),
        "aupr_out": aupr_out(id_scores, ood_scores),
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of `logits` (N, K) whose largest entry is at `labels` (N,)."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or 0 in logits.shape:
        raise UsageError(
            "expected logits (N, K) and labels (N,) with N >= 1, "
            f"but got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    return float((logits.argmax(dim=1) == labels).double().mean())


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over bins.

    Σ_b (n_b / N)·|accuracy_b − mean confidence_b| over `bins` bins of equal width on (0, 1], closed
    on the right.

    Args:
        confidence: (N,) the predicted class's probability, in [0, 1].
        correct: (N,) whether the prediction is right.
        bins: how many; 15 in the source.

    Raises:
        UsageError: for empty arrays, of different lengths, or values outside [0, 1].

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    values = _as_scores(confidence, "confidence")
    right = np.asarray(correct, dtype=bool)
    if right.shape != values.shape:
        raise UsageError(f"expected correct of shape {values.shape}, but got {right.shape}")
    if values.min() < 0 or values.max() > 1:
        outside = values[(values < 0) | (values > 1)][0]
        raise UsageError(f"expected confidence in [0, 1], but got {outside}")
    if bins < 1:
        raise UsageError(f"expected bins >= 1, but got {bins}")
    place = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - values, minlength=bins)
    return float(np.abs(gaps).sum() / values.size)


def _as_scores(values: Any, name: str) -> FloatArray:
    if hasattr(values, "detach"):  # a tensor; torch itself is not needed here
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(f"expected {name} of shape (N,) with N >= 1, but got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise UsageError(f"expected finite {name}, but got {array[bad]} at index {bad}")
    return array


def _joined(id_scores: Any, ood_scores: Any) -> tuple[FloatArray, NDArray[np.bool_]]:
    ids, ood = _as_scores(id_scores, "id_scores"), _as_scores(ood_scores, "ood_scores")
    is_ood = np.concatenate([np.zeros(ids.size, bool), np.ones(ood.size, bool)])
    return np.concatenate([ids, ood]), is_ood
