"""The contents of `scores.parquet`: the score of every sample of the test sets, verified or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from greg_cert.certificates.format import CERTIFICATES, SCORES
from greg_cert.certificates.frame_file import (
    check_keys,
    check_numbers,
    check_unique,
    read_rows,
)
from greg_cert.errors import RunError

TEST, OOD = "test", "ood/"
COLUMNS = ("run", "part", "index", "score")
TOLERANCE = 0.01  # of float32 on any device against float64, times 1 + |score|


def read_test_scores(folder: Path) -> pd.DataFrame | None:
    """The checked rows of `scores.parquet`; None where there is no such file.

    A row a run, part and sample. The part is `test` (ID) or `ood/` with the name of an OOD set.

    Raises:
        RunError: the file is damaged, or a column holds a value that it cannot hold.
    """
    path = folder / SCORES
    if not path.exists():
        return None
    frame = read_rows(path, COLUMNS)
    check_numbers(path, frame, ("score",))
    check_keys(path, frame, ("run", "part"))
    frame = frame.assign(run=frame["run"].astype(str), part=frame["part"].astype(str))
    for part in frame["part"].unique():
        if part != TEST and (not part.startswith(OOD) or part == OOD):
            raise RunError(
                f"{path}: column part: expected {TEST} or {OOD}NAME, but got {str(part)!r}"
            )
    scores = frame["score"].to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise RunError(
            f"{path}: column score: expected a finite number, but got {scores[row]} in row {row}"
        )
    check_unique(path, frame, ["run", "part", "index"])
    for run, rows in frame.groupby("run", sort=False):
        if not (rows["part"] == TEST).any():
            raise RunError(f"{path}: column part: expected rows of {TEST} for run {run!r}")
    return frame.assign(score=scores)


def check_same_scores(path: Path, scores: pd.DataFrame, frame: pd.DataFrame, part: str) -> None:
    """Nothing, if both files give a sample the same score, up to the precision of a network.

    Args:
        path: of `scores`, for the message.
        scores: rows of `scores.parquet`.
        frame: certificates of the samples of `part`.
        part: `test`, or `ood/` with a name.

    Raises:
        RunError: the scores are of another network or of other samples.
    """
    both = frame[["run", "index", "score"]].merge(
        scores[scores["part"] == part], on=["run", "index"], suffixes=("", "_all")
    )
    own = both["score"].to_numpy(dtype=np.float64)
    off = np.abs(both["score_all"].to_numpy(dtype=np.float64) - own) > TOLERANCE * (1 + np.abs(own))
    if off.any():
        row = both.iloc[int(np.flatnonzero(off)[0])]
        raise RunError(
            f"{path}: column score: expected {row['score']:.6g} of {CERTIFICATES} for run "
            f"{row['run']!r}, part {part}, index {row['index']}, but got {row['score_all']:.6g}"
        )
