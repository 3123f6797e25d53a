"""The files of scores: of all test samples, and bounds of those of OOD samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from greg_cert.certificates.columns import check_column, check_keys, check_unique, numbers, refused
from greg_cert.certificates.format import CERTIFICATES, OOD_SCORES, SCORES
from greg_cert.certificates.frame_file import read_rows
from greg_cert.errors import RunError

TEST, OOD = "test", "ood/"
COLUMNS = ("run", "part", "index", "score")
OOD_COLUMNS = ("run", "dataset", "index", "radius", "score", "score_bound", "score_attack")
TOLERANCE = 0.01  # of float32 on any device against float64, times 1 + |score|


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
    frame = read_rows(path, OOD_COLUMNS)
    values = {name: numbers(path, frame, name) for name in OOD_COLUMNS[3:]}
    check_keys(path, frame, ("run", "dataset"))
    for name, found in values.items():
        wrong, expected = ~np.isfinite(found), "a finite number"
        if name == "score_bound":
            wrong, expected = wrong & ~np.isneginf(found), "a number or -inf"
        if name == "radius":
            wrong, expected = wrong | (found < 0), "a finite radius >= 0"
        check_column(path, name, wrong, expected, found)
    check_unique(path, frame, ["run", "dataset", "index", "radius"])
    return frame.assign(run=frame["run"].astype(str), dataset=frame["dataset"].astype(str))


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
    scores = numbers(path, frame, "score")
    check_keys(path, frame, ("run", "part"))
    frame = frame.assign(run=frame["run"].astype(str), part=frame["part"].astype(str), score=scores)
    for part in map(str, frame["part"].unique()):
        if part != TEST and (not part.startswith(OOD) or part == OOD):
            raise refused(path, "part", f"{TEST} or {OOD}NAME", repr(part))
    check_column(path, "score", ~np.isfinite(scores), "a finite number", scores)
    check_unique(path, frame, ["run", "part", "index"])
    for run, rows in frame.groupby("run", sort=False):
        if not (rows["part"] == TEST).any():
            raise RunError(f"{path}: column part: expected rows of {TEST} for run {run!r}")
    return frame


def check_same_scores(path: Path, scores: pd.DataFrame, frame: pd.DataFrame, part: str) -> None:
    """Nothing, if both files give a sample the same score, up to the precision of a network.

    `frame` holds the certificates of the samples of `part`, which is `test` or `ood/` with a name.

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
        where = f"run {row['run']!r}, part {part}, index {row['index']}"
        expected = f"{row['score']:.6g} of {CERTIFICATES} for {where}"
        raise refused(path, "score", expected, f"{row['score_all']:.6g}")
