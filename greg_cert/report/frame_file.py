"""The contents of `certificates.parquet`, checked column by column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from greg_cert.errors import RunError

FRAME_FILE = "certificates.parquet"
STATUSES = ("certified", "rejected", "undecided")
NUMBERS = ("score", "threshold", "gradient_norm", "lipschitz")
PROVEN = ("radius_certified", "radius_lipschitz")
RADII = ("radius_gradient", *PROVEN, "radius_attack")
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
    path = folder / FRAME_FILE
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except FileNotFoundError:
        raise RunError(f"{path}: the file is missing; expected a verification folder") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise RunError(
            f"{path}: cannot be read as parquet, perhaps truncated ({reason})"
        ) from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise RunError(f"{path}: missing column {', '.join(missing)}")
    if frame.empty:
        raise RunError(f"{path}: expected at least one row, but got none")
    _check_types(path, frame)
    _check_values(path, frame)
    return frame.assign(run=frame["run"].astype(str), status=frame["status"].astype(str))


def _check_types(path: Path, frame: pd.DataFrame) -> None:
    for name in (*NUMBERS, *RADII):
        if not is_numeric_dtype(frame[name]) or is_bool_dtype(frame[name]):
            raise RunError(f"{path}: column {name}: expected numbers, but got {frame[name].dtype}")
    if not is_integer_dtype(frame["index"]):
        raise RunError(f"{path}: column index: expected integers, but got {frame['index'].dtype}")
    for name in ("correct", "violation"):
        if not is_bool_dtype(frame[name]) or frame[name].isna().any():
            raise RunError(f"{path}: column {name}: expected booleans, but got {frame[name].dtype}")
    for name in ("run", "status"):
        if frame[name].isna().any():
            raise RunError(f"{path}: column {name}: expected text in every row, but some are empty")


def _check_values(path: Path, frame: pd.DataFrame) -> None:
    unknown = sorted(set(frame["status"].astype(str)) - set(STATUSES))
    if unknown:
        raise RunError(
            f"{path}: column status: expected one of {', '.join(STATUSES)}, but got {unknown[0]!r}"
        )
    for name in RADII:
        values = frame[name].to_numpy(dtype=float, na_value=np.nan)
        wrong = ~(values >= 0)  # also true for not-a-number
        if name in PROVEN:
            wrong |= np.isinf(values)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            kind = "a finite radius >= 0" if name in PROVEN else "a radius >= 0 (inf: none found)"
            raise RunError(
                f"{path}: column {name}: expected {kind}, but got {values[row]} in row {row}"
            )
    twice = frame.duplicated(["run", "index"])
    if twice.any():
        row = int(np.flatnonzero(twice.to_numpy())[0])
        raise RunError(
            f"{path}: column index: {frame['index'].iloc[row]} occurs twice in run "
            f"{frame['run'].iloc[row]!r}"
        )
