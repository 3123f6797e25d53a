"""Checks of single columns of a table, each refused with file, column, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from greg_cert.errors import RunError

FINITE_RADIUS = "a finite radius >= 0"


def refused(path: Path, column: str, expected: str, got: object) -> RunError:
    """The error of a column that holds what it cannot hold."""
    return RunError(f"{path}: column {column}: expected {expected}, but got {got}")


def check_column(
    path: Path, column: str, wrong: np.ndarray, expected: str, values: np.ndarray
) -> None:
    """Nothing, if no row is wrong; else a `RunError` about the first of them."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise refused(path, column, expected, f"{values[row]} in row {row}")


def numbers(path: Path, frame: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, NaN where it is empty.

    Raises:
        RunError: where it does not hold numbers.
    """
    if not is_numeric_dtype(frame[column]) or is_bool_dtype(frame[column]):
        raise refused(path, column, "numbers", frame[column].dtype)
    return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)


def empty_runs(frame: pd.DataFrame, column: str) -> np.ndarray:
    """True in the rows of a run that has nothing in this column: it was not asked for."""
    empty = frame[column].isna().groupby(frame["run"]).transform("all")
    return empty.to_numpy(dtype=bool)


def check_proven(path: Path, frame: pd.DataFrame, column: str) -> None:
    """Nothing, if a column holds proven radii, or none in all of a run; else a `RunError`."""
    values = numbers(path, frame, column)
    wrong = (~(values >= 0) | np.isinf(values)) & ~empty_runs(frame, column)
    check_column(path, column, wrong, FINITE_RADIUS, values)


def check_words(path: Path, column: str, found: pd.Series[Any], words: Sequence[str]) -> None:
    """Nothing, if only these words occur; else a `RunError`."""
    if unknown := sorted(set(found.astype(str)) - set(words)):
        raise refused(path, column, f"one of {', '.join(words)}", repr(unknown[0]))


def check_keys(path: Path, frame: pd.DataFrame, texts: Sequence[str]) -> None:
    """Nothing, if `index` holds integers and these columns text in every row; else a `RunError`."""
    if not is_integer_dtype(frame["index"]):
        raise refused(path, "index", "integers", frame["index"].dtype)
    for name in texts:
        if frame[name].isna().any():
            raise RunError(f"{path}: column {name}: expected text in every row, but some are empty")


def check_unique(path: Path, frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Nothing, if no two rows have the same keys; else a `RunError`."""
    twice = frame.duplicated(list(keys))
    if twice.any():
        first = frame.loc[twice.to_numpy()].iloc[0]
        where = ", ".join(f"{key} {str(first[key])!r}" for key in keys if key != "index")
        raise RunError(f"{path}: column index: {first['index']} occurs twice in {where}")
