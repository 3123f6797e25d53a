"""The two optional files about OOD samples: their certificates, and bounds of their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from greg_cert.certificates.format import OOD_CERTIFICATES, OOD_SCORES
from greg_cert.certificates.frame_file import (
    check_keys,
    check_numbers,
    check_unique,
    read_certificates,
    read_rows,
)
from greg_cert.errors import RunError

OOD_COLUMNS = (
    *("run", "dataset", "index", "status", "score", "threshold"),
    *("radius_certified", "radius_attack", "violation"),
)
OOD_SCORE_COLUMNS = ("run", "dataset", "index", "radius", "score", "score_bound", "score_attack")


def read_ood_frame(folder: Path) -> pd.DataFrame | None:
    """The checked rows of `ood_certificates.parquet`; None where there is no such file.

    Status `rejected` means there that the clean sample is on the wrong side: accepted as ID.

    Raises:
        RunError: the file is damaged, or a column holds a value that it cannot hold.
    """
    path = folder / OOD_CERTIFICATES
    return read_certificates(path, OOD_COLUMNS, ("run", "dataset")) if path.exists() else None


def read_ood_scores(folder: Path) -> pd.DataFrame | None:
    """The checked rows of `ood_scores.parquet`; None where there is no such file.

    A row a run, OOD sample and radius: the clean score, a proven lower bound of the score over the
    ball (-inf where nothing is proven), and the lowest score that an attack found in it.

    Raises:
        RunError: the file is damaged, or a column holds a value that it cannot hold.
    """
    path = folder / OOD_SCORES
    if not path.exists():
        return None
    frame = read_rows(path, OOD_SCORE_COLUMNS)
    check_numbers(path, frame, OOD_SCORE_COLUMNS[3:])
    check_keys(path, frame, ("run", "dataset"))
    for name in OOD_SCORE_COLUMNS[3:]:
        values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = ~np.isfinite(values)
        if name == "score_bound":
            wrong &= ~np.isneginf(values)
        if name == "radius":
            wrong |= values < 0
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            kind = {"radius": "a finite radius >= 0", "score_bound": "a number or -inf"}.get(
                name, "a finite number"
            )
            raise RunError(
                f"{path}: column {name}: expected {kind}, but got {values[row]} in row {row}"
            )
    check_unique(path, frame, ["run", "dataset", "index", "radius"])
    return frame.assign(run=frame["run"].astype(str), dataset=frame["dataset"].astype(str))
