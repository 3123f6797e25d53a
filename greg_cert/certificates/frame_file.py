"""The tables of certificates, of ID and of OOD samples, checked column by column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype

from greg_cert.certificates.columns import (
    FINITE_RADIUS,
    check_column,
    check_keys,
    check_proven,
    check_unique,
    check_words,
    numbers,
    refused,
)
from greg_cert.certificates.format import CERTIFICATES, CERTIFIED, OOD_CERTIFICATES, STATUSES
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
OOD_COLUMNS = (
    *("run", "dataset", "index", "status", "score", "threshold"),
    *("radius_certified", "radius_attack", "violation"),
)


def read_frame(folder: Path) -> pd.DataFrame:
    """The checked rows of `folder/certificates.parquet`, in the order of the file.

    Raises:
        RunError: the file is missing, truncated, empty, lacks a column, or a column holds a value
            that it cannot hold (a negative or missing radius, an unknown status).
    """
    return _read_certificates(folder / CERTIFICATES, COLUMNS, ("run",))


def read_ood_frame(folder: Path) -> pd.DataFrame | None:
    """The checked rows of `ood_certificates.parquet`; None where there is no such file.

    Status `rejected` means there that the clean sample is on the wrong side: accepted as ID.

    Raises:
        RunError: as `read_frame`, for a file that is there.
    """
    path = folder / OOD_CERTIFICATES
    return _read_certificates(path, OOD_COLUMNS, ("run", "dataset")) if path.exists() else None


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
    for name in frame.columns:
        if frame[name].dtype == object and not frame[name].map(pd.api.types.is_hashable).all():
            raise RunError(f"{path}: expected single values in column {name}, but got lists")
    return frame


def _read_certificates(
    path: Path, required: tuple[str, ...], keys: tuple[str, ...]
) -> pd.DataFrame:
    """The checked rows of a table of certificates.

    Columns not `required` are checked where they are; `keys`, texts, and `index` name a row.
    """
    frame = read_rows(path, required)
    present = [name for name in (*NUMBERS, *RADII, REFUTED) if name in frame.columns]
    values = {name: numbers(path, frame, name) for name in present}
    booleans = ("correct", "violation") if "dataset" not in keys else ("violation",)
    for name in booleans:  # no OOD sample has a right class
        if not is_bool_dtype(frame[name]) or frame[name].isna().any():
            raise refused(path, name, "booleans", frame[name].dtype)
    check_keys(path, frame, (*keys, "status"))
    check_words(path, "status", frame["status"], STATUSES)
    for name in (name for name in RADII if name in values):
        radius = values[name]
        if name == "radius_lipschitz":
            check_proven(path, frame, name)
        elif name in PROVEN:
            check_column(path, name, ~(radius >= 0) | np.isinf(radius), FINITE_RADIUS, radius)
        else:
            words = "a radius >= 0 (inf: none found)"
            check_column(path, name, ~(radius >= 0), words, radius)
    proven, status = values["radius_certified"], frame["status"].astype(str).to_numpy()
    wrong = (proven > 0) & (status != CERTIFIED)
    if wrong.any():
        expected = f"0 for status {status[wrong][0]!r}"
        check_column(path, "radius_certified", wrong, expected, proven)
    check_methods(path, frame)
    check_unique(path, frame, [*keys, "index"])
    return frame.assign(**{name: frame[name].astype(str) for name in (*keys, "status")})
