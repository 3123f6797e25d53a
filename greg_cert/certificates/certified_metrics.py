"""Metrics of a whole population from certificates and attacks, each named by its direction.

A proof gives one end of a share or an area, an attack the other, and the true value lies between:
`certified_*` and `guaranteed_*` come from proofs, `attacked_*` and `adversarial_*` from attacks.
No sample is left out of a denominator. All of it is numpy, so that a report needs no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from greg_cert.errors import UsageError
from greg_cert.metrics import FloatArray


def certified_acceptance(radius_certified: ArrayLike, radii: ArrayLike) -> FloatArray:
    """Share of all ID samples proven to stay accepted anywhere within each radius.

    A sample counts at r iff its proven radius is above 0 and >= r. A rejected sample and an
    undecided one carry radius 0, so they never count, not even at r = 0.

    Args:
        radius_certified: (N,) proven radii, a row for every ID sample.
        radii: (R,) radii to evaluate at, or one number.

    Returns:
        (R,) lower bounds of the share that stays accepted under attack.

    Raises:
        UsageError: for no sample, a NaN, or a negative radius.
    """
    proven = _radii(radius_certified, "radius_certified")
    return _proven_beyond(proven, radii) / proven.size


def certified_fpr(ood_radius_certified: ArrayLike, radii: ArrayLike) -> FloatArray:
    """Share of all OOD samples NOT proven to stay rejected within each radius.

    Upper bound of the false-positive rate under perturbation: OOD samples accepted as ID clean and
    those without a proof count as false positives at every radius.

    Args:
        ood_radius_certified: (N,) proven radii of staying rejected, a row for every OOD sample.
        radii: (R,) radii to evaluate at, or one number.

    Returns:
        (R,) upper bounds. Errors as for `certified_acceptance`.
    """
    proven = _radii(ood_radius_certified, "ood_radius_certified")
    return (proven.size - _proven_beyond(proven, radii)) / proven.size


def attacked_fpr(ood_radius_attack: ArrayLike, radii: ArrayLike) -> FloatArray:
    """Share of all OOD samples that an attack within each radius made accepted as ID.

    Lower bound of the false-positive rate under perturbation, and the other end of `certified_fpr`.

    Args:
        ood_radius_attack: (N,) smallest distances at which an attack succeeded: 0 where the clean
            sample is accepted already, inf where no attack was found.
        radii: (R,) radii to evaluate at, or one number.

    Returns:
        (R,) lower bounds. Errors as for `certified_acceptance`.
    """
    attack = np.sort(_radii(ood_radius_attack, "ood_radius_attack"))
    return np.searchsorted(attack, _at(radii), side="right") / attack.size


def guaranteed_auroc(id_scores: ArrayLike, ood_score_lower_bounds: ArrayLike) -> float:
    """Guaranteed AUROC: share of pairs with the OOD bound strictly above the clean ID score.

    Lower bound of the AUROC when every OOD sample is moved in the worst way within its ball and ID
    samples stay clean. The definition states a confidence (high = ID) and an upper bound of it;
    here the score is high for OOD and bounded from below. Ties count against the detector.

    Source: Bitterwolf, Meinke and Hein, "Certifiably Adversarially Robust Detection of
    Out-of-Distribution Data", NeurIPS 2020 (GAUC).

    Args:
        id_scores: (N,) finite scores of clean ID samples.
        ood_score_lower_bounds: (M,) proven lower bounds of the score over each OOD sample's ball;
            -inf where nothing is proven.

    Raises:
        UsageError: for no sample, a NaN, an infinite ID score, or a bound of +inf.
    """
    return _strict_auroc(id_scores, ood_score_lower_bounds, "ood_score_lower_bounds")


def adversarial_auroc(id_scores: ArrayLike, attacked_ood_scores: ArrayLike) -> float:
    """Adversarial AUROC: share of pairs with the attacked OOD score strictly above the ID score.

    Upper bound of the AUROC under the worst perturbation, by the lowest scores that an attack found
    (AAUC of the same paper, with the same rule for ties), so that

        guaranteed_auroc <= adversarial_auroc <= auroc   where bound <= attacked <= clean score.

    Args:
        id_scores: (N,) finite scores of clean ID samples.
        attacked_ood_scores: (M,) lowest scores found within each OOD sample's ball.

    Raises:
        UsageError: as for `guaranteed_auroc`.
    """
    return _strict_auroc(id_scores, attacked_ood_scores, "attacked_ood_scores")


def clean_auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Probability that an OOD score lies above an ID score, ties one half, as `metrics.auroc`."""
    above = adversarial_auroc(id_scores, ood_scores)
    return (above + 1.0 - adversarial_auroc(ood_scores, id_scores)) / 2.0


def median_radius(radii: ArrayLike) -> float:
    """Median over all samples, 0 where there is no certificate and inf where no attack was found.

    With an even number of samples the mean of the two middle ones, so inf if either is.

    Raises:
        UsageError: for no sample, a NaN, or a negative radius.
    """
    return float(np.median(_radii(radii, "radii")))


def average_certified_radius(radius_certified: ArrayLike) -> float:
    """Mean proven radius over all samples (ACR), those without a certificate as 0.

    Raises:
        UsageError: for no sample, a NaN, or a negative radius.
    """
    return float(np.mean(_radii(radius_certified, "radius_certified")))


def _proven_beyond(proven: FloatArray, radii: ArrayLike) -> FloatArray:
    """How many radii are positive and >= each of `radii`, (R,)."""
    ordered = np.sort(proven[proven > 0])
    return np.asarray(ordered.size - np.searchsorted(ordered, _at(radii), side="left"), np.float64)


def _strict_auroc(id_scores: ArrayLike, ood_scores: ArrayLike, name: str) -> float:
    ids = np.sort(_numbers(id_scores, "id_scores"))
    ood = _numbers(ood_scores, name)
    for values, where, wrong in (
        (ids, "finite id_scores", np.isinf(ids)),
        (ood, f"{name} < inf", np.isposinf(ood)),
    ):
        if wrong.any():
            raise UsageError(f"expected {where}, but got {values[wrong][0]}")
    below = np.searchsorted(ids, ood, side="left")  # ID scores strictly below each OOD score
    return float(below.sum() / (ids.size * ood.size))


def _at(radii: ArrayLike) -> FloatArray:
    return _radii(np.atleast_1d(np.asarray(radii, dtype=np.float64)), "radii")


def _radii(values: ArrayLike, name: str) -> FloatArray:
    array = _numbers(values, name)
    if (array < 0).any():
        first = int(np.flatnonzero(array < 0)[0])
        raise UsageError(f"expected {name} >= 0, but got {array[first]} at index {first}")
    return array


def _numbers(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(f"expected {name} of shape (N,) with N >= 1, but got shape {array.shape}")
    if np.isnan(array).any():
        first = int(np.flatnonzero(np.isnan(array))[0])
        raise UsageError(f"expected {name} without NaN, but got one at index {first}")
    return array
