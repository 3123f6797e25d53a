"""One verification folder in memory: the checked rows and summary, which must agree."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from greg_cert.errors import RunError
from greg_cert.report.frame_file import FRAME_FILE, read_frame
from greg_cert.report.summary_file import SUMMARY_FILE, Summary, read_summary


@dataclass(frozen=True)
class Results:
    """Rows and summary of one verification, paired over runs.

    Attributes:
        folder: where the two files were read.
        frame: one row per (run, sample); runs in the summary's order, samples by `index`, so that
            row k of every run is the same test sample.
        summary: the checked contents of `summary.json`.
        fingerprint: SHA-256 of `certificates.parquet`.
    """

    folder: Path
    frame: pd.DataFrame
    summary: Summary
    fingerprint: str

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the summary's order."""
        return tuple(self.summary.runs)

    @property
    def samples(self) -> int:
        """Number of samples in each run."""
        return len(self.frame) // len(self.runs)

    def of(self, run: str) -> pd.DataFrame:
        """The rows of one run, by ascending sample index."""
        return self.frame[self.frame["run"] == run]

    def column(self, run: str, name: str) -> np.ndarray:
        """One numeric column of one run as float64, shape (n,), by ascending sample index."""
        return self.of(run)[name].to_numpy(dtype=np.float64, na_value=np.nan)

    def kept(self, run: str) -> np.ndarray:
        """True where the clean sample is on the right side of the threshold, shape (n,)."""
        return (self.of(run)["status"] != "rejected").to_numpy(dtype=bool)


def load_results(folder: Path) -> Results:
    """The verification folder's two files, each checked, and checked against each other.

    Raises:
        RunError: a file is missing, damaged or incomplete, or the two disagree; the message names
            the file and the field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: expected a verification folder, but there is none")
    summary = read_summary(folder)
    frame = read_frame(folder)
    path = folder / FRAME_FILE
    in_frame = set(frame["run"])
    for run in summary.runs:
        if run not in in_frame:
            raise RunError(f"{path}: column run: no rows for run {run!r} of {SUMMARY_FILE}")
    for run in sorted(in_frame - set(summary.runs)):
        raise RunError(f"{path}: column run: {run!r} is not among the runs of {SUMMARY_FILE}")
    order = {run: position for position, run in enumerate(summary.runs)}
    frame = (
        frame.assign(_order=frame["run"].map(order))
        .sort_values(["_order", "index"], kind="stable")
        .drop(columns="_order")
        .reset_index(drop=True)
    )
    _check_agreement(folder, frame, summary)
    return Results(folder, frame, summary, hashlib.sha256(path.read_bytes()).hexdigest())


def _check_agreement(folder: Path, frame: pd.DataFrame, summary: Summary) -> None:
    first: tuple[str, np.ndarray] | None = None
    for run, record in summary.runs.items():
        rows = frame[frame["run"] == run]
        if len(rows) != record.samples:
            raise RunError(
                f"{folder / SUMMARY_FILE}: field runs.{run}.samples: expected the {len(rows)} rows "
                f"of {FRAME_FILE}, but got {record.samples}"
            )
        for status, count in (record.status or {}).items():
            found = int((rows["status"] == status).sum())
            if found != count:
                raise RunError(
                    f"{folder / SUMMARY_FILE}: field runs.{run}.status.{status}: expected the "
                    f"{found} rows of {FRAME_FILE}, but got {count}"
                )
        broken = int(rows["violation"].sum())
        if broken != record.violations:
            raise RunError(
                f"{folder / SUMMARY_FILE}: field runs.{run}.violations: expected the {broken} of "
                f"{FRAME_FILE}, but got {record.violations}"
            )
        index = rows["index"].to_numpy()
        if first is None:
            first = (run, index)
        elif not np.array_equal(first[1], index):
            raise RunError(
                f"{folder / FRAME_FILE}: column index: runs {first[0]!r} and {run!r} must hold the "
                "same samples, but do not"
            )
