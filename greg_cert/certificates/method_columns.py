"""The optional columns of a table of certificates: what each is called, and what its numbers are.

Proofs hold over the whole ball; CLEVER is an estimate; randomised smoothing proves something about
another function, the smoothed detector, with a stated probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from greg_cert.certificates.columns import (
    FINITE_RADIUS,
    check_column,
    check_proven,
    check_words,
    empty_runs,
    numbers,
    refused,
)
from greg_cert.certificates.methods import (
    DECISIONS,
    NO_METHOD,
    PROOF,
    PROOFS,
    RADIUS_METHOD,
    STATUS,
    STOPPED_BY,
    STOPS,
    TABLE,
    Method,
    column_of,
)
from greg_cert.errors import RunError

CLEVER, PVALUE = column_of("clever"), "clever_fit_pvalue"
SMOOTHING, DECISION = column_of("smoothing"), "smoothing_decision"

OPTIONAL_METHODS = tuple(m for m in TABLE if m.code and m.name not in ("lipschitz", "smoothing"))
"""The optional columns of radii."""


def holds(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column is there and holds anything; one that was not asked for is NaN."""
    return column in frame.columns and bool(frame[column].notna().any())


def methods_of(frame: pd.DataFrame) -> list[Method]:
    """The optional radii that a table holds, smoothing apart."""
    return [method for method in OPTIONAL_METHODS if holds(frame, method.column)]


def held_methods(frames: Sequence[pd.DataFrame]) -> list[str]:
    """The methods whose radii any of these tables of certificates holds, by their own names."""
    return [method for method in STATUS if any(holds(frame, column_of(method)) for frame in frames)]


def has_smoothing(frame: pd.DataFrame) -> bool:
    """Whether a table holds decisions of a smoothed detector."""
    return holds(frame, DECISION)


def check_methods(path: Path, frame: pd.DataFrame) -> None:
    """Nothing, if the optional columns that are there hold what they can hold.

    Raises:
        RunError: naming file and column, else.
    """
    for method in methods_of(frame):
        if method.status == PROOF:
            check_proven(path, frame, method.column)
        else:
            values = numbers(path, frame, method.column)
            check_column(path, method.column, values < 0, "a radius >= 0, or none", values)
    for column, words in ((RADIUS_METHOD, (*PROOFS, NO_METHOD)), (STOPPED_BY, STOPS)):
        if holds(frame, column):
            found = frame[column]
            wrong = ~empty_runs(frame, column) & ~found.isin(words).to_numpy(dtype=bool)
            said = found.map(repr).to_numpy()
            check_column(path, column, wrong, f"one of {', '.join(words)}", said)
    if holds(frame, PVALUE):
        values = numbers(path, frame, PVALUE)
        wrong = (values < 0) | (values > 1)
        if wrong.any():
            raise refused(path, PVALUE, "0 to 1 or none", values[wrong][0])
    if holds(frame, SMOOTHING) or holds(frame, DECISION):
        _check_smoothing(path, frame)


def _check_smoothing(path: Path, frame: pd.DataFrame) -> None:
    for column in (SMOOTHING, DECISION):
        if column not in frame.columns:
            raise RunError(f"{path}: missing column {column}, which belongs to its partner")
    values, decisions = numbers(path, frame, SMOOTHING), frame[DECISION]
    check_words(path, DECISION, decisions.dropna(), DECISIONS)
    decided = decisions.isin(DECISIONS[:2]).to_numpy()
    wrong = np.where(decided, ~((values >= 0) & np.isfinite(values)), ~np.isnan(values))
    said = np.array([f"{v} for {word!r}" for v, word in zip(values, decisions, strict=True)])
    expected = f"{FINITE_RADIUS} where decided and none where abstained"
    check_column(path, SMOOTHING, wrong, expected, said)
