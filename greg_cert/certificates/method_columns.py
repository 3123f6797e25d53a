"""The optional columns of a table of certificates: what each is called, and what its numbers are.

Proofs hold over the whole ball; CLEVER is an estimate; randomised smoothing proves something about
another function, the smoothed detector, with a stated probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

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

CLEVER, PVALUE = "radius_clever", "clever_fit_pvalue"
SMOOTHING, DECISION = "radius_smoothing", "smoothing_decision"


METHODS = tuple(m for m in TABLE if m.code and m.name not in ("lipschitz", "smoothing"))
"""The optional columns of radii."""


def asked(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column is there and holds anything; one that was not asked for is NaN."""
    return column in frame.columns and bool(frame[column].notna().any())


def methods_of(frame: pd.DataFrame) -> list[Method]:
    """The optional radii that a table holds, smoothing apart."""
    return [method for method in METHODS if asked(frame, method.column)]


def held_methods(frames: Sequence[pd.DataFrame]) -> list[str]:
    """The methods whose radii any of these tables of certificates holds, by their own names."""
    return [method for method in STATUS if any(asked(frame, column_of(method)) for frame in frames)]


def has_smoothing(frame: pd.DataFrame) -> bool:
    """Whether a table holds decisions of a smoothed detector."""
    return asked(frame, DECISION)


def check_methods(path: Path, frame: pd.DataFrame) -> None:
    """Nothing, if the optional columns that are there hold what they can hold.

    Raises:
        RunError: naming file and column, else.
    """
    for method in methods_of(frame):
        _check_radius(path, frame, method.column, proof=method.status == PROOF)
    for column, words in ((RADIUS_METHOD, (*PROOFS, NO_METHOD)), (STOPPED_BY, STOPS)):
        if asked(frame, column):
            _check_words(path, frame, column, words)
    if asked(frame, PVALUE):
        values = _numbers(path, frame, PVALUE)
        wrong = (values < 0) | (values > 1)
        if wrong.any():
            raise RunError(
                f"{path}: column {PVALUE}: expected 0 to 1 or none, but got {values[wrong][0]}"
            )
    if asked(frame, SMOOTHING) or asked(frame, DECISION):
        _check_smoothing(path, frame)


def _check_radius(path: Path, frame: pd.DataFrame, column: str, *, proof: bool) -> None:
    values = _numbers(path, frame, column)
    unknown = np.isnan(values)
    if proof:  # NaN says "not asked for", which goes for a whole run or not at all
        whole = pd.Series(unknown, index=frame.index).groupby(frame["run"]).transform("all")
        unknown = whole.to_numpy(dtype=bool)
    wrong = ~unknown & ~(values >= 0)
    if proof:
        wrong |= np.isinf(values)
    if wrong.any():
        kind = "a finite radius >= 0" if proof else "a radius >= 0, or none"
        row = int(np.flatnonzero(wrong)[0])
        raise RunError(
            f"{path}: column {column}: expected {kind}, but got {values[row]} in row {row}"
        )


def _check_words(path: Path, frame: pd.DataFrame, column: str, words: tuple[str, ...]) -> None:
    """One of `words` in each row, or none in all of a run, whose method has no such column."""
    found = frame[column]
    whole = found.isna().groupby(frame["run"]).transform("all")
    wrong = ~whole & ~found.isin(words)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RunError(
            f"{path}: column {column}: expected one of {', '.join(words)}, but got "
            f"{found.iloc[row]!r} in row {row}"
        )


def _check_smoothing(path: Path, frame: pd.DataFrame) -> None:
    for column in (SMOOTHING, DECISION):
        if column not in frame.columns:
            raise RunError(f"{path}: missing column {column}, which belongs to its partner")
    values = _numbers(path, frame, SMOOTHING)
    decisions = frame[DECISION]
    taken = decisions.notna().to_numpy()
    unknown = sorted(set(decisions[taken].astype(str)) - set(DECISIONS))
    if unknown:
        raise RunError(
            f"{path}: column {DECISION}: expected one of {', '.join(DECISIONS)}, "
            f"but got {unknown[0]!r}"
        )
    decided = decisions.isin(DECISIONS[:2]).to_numpy()
    wrong = np.where(decided, ~((values >= 0) & np.isfinite(values)), ~np.isnan(values))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RunError(
            f"{path}: column {SMOOTHING}: expected a finite radius >= 0 where decided and none "
            f"where abstained, but got {values[row]} for {decisions.iloc[row]!r} in row {row}"
        )


def _numbers(path: Path, frame: pd.DataFrame, column: str) -> np.ndarray:
    if not is_numeric_dtype(frame[column]) or is_bool_dtype(frame[column]):
        raise RunError(f"{path}: column {column}: expected numbers, but got {frame[column].dtype}")
    return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
