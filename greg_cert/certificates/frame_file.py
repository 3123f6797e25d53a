"""The contents of `certificates.parquet`, checked column by column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from greg_cert.certificates.format import CERTIFICATES, CERTIFIED, STATUSES
from greg_cert.certificates.method_columns import check_methods
from greg_cert.digests import tell_unchecked
from greg_cert.errors import RunError
from greg_cert.frames import read_frame as read_table

NUMBERS = ("score", "threshold", "gradient_norm", "lipschitz")
PROVEN = ("radius_certified", "radius_lipschitz")
RADII = ("radius_gradient", *PROVEN, "radius_attack")
REFUTED = "radius_refuted"  # of later versions: what was proven where an attack contradicts it
COLUMNS = (
    *("run", "method", "index", "label", "predicted", "correct", "status"),
    *(*NUMBERS, *RADII, "violation"),
)


def read_frame(folder: Path) -> pd.DataFrame:
    """The checked rows of `folder/certificates.parquet`, in the order of the file.

    Raises:
        RunError: the file is missing, truncated, empty, lacks a column, or a column holds a value
            that it cannot hold (a negative or missing radius, an unknown status).
    """
    return read_certificates(folder / CERTIFICATES, COLUMNS, ("run",))


def read_certificates(path: Path, required: tuple[str, ...], keys: tuple[str, ...]) -> pd.DataFrame:
    """The checked rows of a table of certificates.

    Args:
        path: the file.
        required: columns that must be there; others of `COLUMNS` are checked where they are.
        keys: columns of text that, with `index`, name a row.

    Raises:
        RunError: as for `read_frame`.
    """
    frame = read_rows(path, required)
    _check_types(path, frame, keys)
    _check_values(path, frame)
    check_methods(path, frame)
    check_unique(path, frame, [*keys, "index"])
    return frame.assign(**{name: frame[name].astype(str) for name in (*keys, "status")})


def read_rows(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """The rows of a parquet file, of which there is at least one, with all of these columns.

    Raises:
        RunError: the file is missing, damaged, empty or lacks a column.
    """
    try:
        frame, _, checked = read_table(path)
    except FileNotFoundError:
        raise RunError(f"{path}: the file is missing; expected a verification folder") from None
    if not checked:
        tell_unchecked(path)
    missing = [name for name in required if name not in frame.columns]
    if missing:
        raise RunError(f"{path}: missing column {', '.join(missing)}")
    if frame.empty:
        raise RunError(f"{path}: expected at least one row, but got none")
    return frame


def check_numbers(path: Path, frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    """Nothing, if these columns hold numbers; else a `RunError`."""
    for name in names:
        if not is_numeric_dtype(frame[name]) or is_bool_dtype(frame[name]):
            raise RunError(f"{path}: column {name}: expected numbers, but got {frame[name].dtype}")


def check_keys(path: Path, frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    """Nothing, if `index` holds integers and these columns text in every row; else a `RunError`."""
    if not is_integer_dtype(frame["index"]):
        raise RunError(f"{path}: column index: expected integers, but got {frame['index'].dtype}")
    for name in names:
        if frame[name].isna().any():
            raise RunError(f"{path}: column {name}: expected text in every row, but some are empty")


def check_unique(path: Path, frame: pd.DataFrame, keys: list[str]) -> None:
    """Nothing, if no two rows have the same keys; else a `RunError`."""
    twice = frame.duplicated(keys)
    if twice.any():
        first = frame.loc[twice.to_numpy()].iloc[0]
        where = ", ".join(f"{key} {str(first[key])!r}" for key in keys if key != "index")
        raise RunError(f"{path}: column index: {first['index']} occurs twice in {where}")


def _check_types(path: Path, frame: pd.DataFrame, keys: tuple[str, ...]) -> None:
    here = frame.columns
    check_numbers(path, frame, tuple(name for name in (*NUMBERS, *RADII, REFUTED) if name in here))
    for name in ("correct", "violation"):
        if name not in here or (name == "correct" and "dataset" in keys):
            continue  # no OOD sample has a right class
        if not is_bool_dtype(frame[name]) or frame[name].isna().any():
            raise RunError(f"{path}: column {name}: expected booleans, but got {frame[name].dtype}")
    check_keys(path, frame, (*keys, "status"))


def _check_values(path: Path, frame: pd.DataFrame) -> None:
    unknown = sorted(set(frame["status"].astype(str)) - set(STATUSES))
    if unknown:
        raise RunError(
            f"{path}: column status: expected one of {', '.join(STATUSES)}, but got {unknown[0]!r}"
        )
    for name in RADII:
        if name not in frame.columns:
            continue
        values = frame[name].to_numpy(dtype=float, na_value=np.nan)
        wrong = ~(values >= 0)  # also true for not-a-number
        if name in PROVEN:
            wrong |= np.isinf(values)
        if name == "radius_lipschitz":  # NaN in all of a run: not asked for
            empty = pd.Series(np.isnan(values), index=frame.index)
            wrong &= ~empty.groupby(frame["run"]).transform("all").to_numpy(dtype=bool)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            kind = "a finite radius >= 0" if name in PROVEN else "a radius >= 0 (inf: none found)"
            raise RunError(
                f"{path}: column {name}: expected {kind}, but got {values[row]} in row {row}"
            )
    proven = frame["radius_certified"].to_numpy(dtype=float)
    status = frame["status"].astype(str).to_numpy()
    wrong = (proven > 0) & (status != CERTIFIED)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RunError(
            f"{path}: column radius_certified: expected 0 for status {status[row]!r}, but got "
            f"{proven[row]} in row {row}"
        )
