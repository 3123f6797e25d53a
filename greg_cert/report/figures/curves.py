"""Certified and attacked fractions as functions of the radius: the true curve lies between."""

from __future__ import annotations

import numpy as np


def certified_fraction(certified: np.ndarray, kept: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Fraction of **all** samples proven to keep their side everywhere within each radius.

    A sample counts at r iff its clean version is on the right side and radius_certified >= r.

    Args:
        certified: proven radii, shape (n,).
        kept: whether the clean sample is on the right side, shape (n,).
        radii: where to evaluate, shape (m,).

    Returns:
        A lower bound of the true fraction, shape (m,).
    """
    ordered = np.sort(certified[kept])
    return (len(ordered) - np.searchsorted(ordered, radii, side="left")) / len(certified)


def unbroken_fraction(attack: np.ndarray, kept: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Fraction of **all** samples that no attack found within each radius could move.

    A sample counts at r iff its clean version is on the right side and radius_attack > r; one
    without any attack found (infinite) counts everywhere.

    Args:
        attack: radii of the attacks, shape (n,).
        kept: whether the clean sample is on the right side, shape (n,).
        radii: where to evaluate, shape (m,).

    Returns:
        An upper bound of the true fraction, shape (m,).
    """
    ordered = np.sort(attack[kept])
    return (len(ordered) - np.searchsorted(ordered, radii, side="right")) / len(attack)


def corners(*columns: np.ndarray, end: float) -> np.ndarray:
    """Where step curves of these radii change, with 0 and `end`, ascending, shape (m,)."""
    finite = np.concatenate([c[np.isfinite(c) & (c < end)] for c in columns])
    return np.unique(np.concatenate([[0.0], finite, [end]]))


def reach(certified: np.ndarray, attack: np.ndarray, max_radius: float | None) -> float:
    """Right end of a radius axis that shows every certificate and all but stray attacks."""
    found = attack[np.isfinite(attack)]
    ends = [float(certified.max(initial=0.0))]
    if len(found):
        ends.append(float(np.quantile(found, 0.99)))
    end = 1.05 * max(ends)
    if end <= 0:
        return max_radius or 1.0
    return end if max_radius is None else min(end, max(max_radius, ends[0]))
