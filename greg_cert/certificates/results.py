"""One verification folder in memory: the checked rows and summary, which must agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.certificates.agreement import check_agreement
from greg_cert.certificates.folder import Tables
from greg_cert.certificates.format import (
    CERTIFICATES,
    OOD_CERTIFICATES,
    OOD_SCORES,
    REJECTED,
    SCORES,
    SUMMARY,
)
from greg_cert.certificates.frame_file import read_frame, read_ood_frame
from greg_cert.certificates.row_check import check_rows
from greg_cert.certificates.score_file import (
    OOD,
    TEST,
    check_same_scores,
    read_ood_scores,
    read_test_scores,
)
from greg_cert.certificates.summary_file import Summary, read_document, summary_of
from greg_cert.errors import RunError
from greg_cert.files import plain_file


@dataclass(frozen=True)
class Results:
    """Rows and summary of one verification, paired over runs.

    `frame` has one row per (run, sample): runs in the summary's order, samples by `index`, so that
    row k of every run is the same test sample.
    """

    folder: Path
    frame: pd.DataFrame
    document: dict[str, Any]  # `summary.json` as it is
    summary: Summary  # its checked contents
    fingerprint: str  # SHA-256 of `certificates.parquet`
    ood: pd.DataFrame | None = None  # rows of `ood_certificates.parquet`
    ood_scores: pd.DataFrame | None = None  # of `ood_scores.parquet`
    test_scores: pd.DataFrame | None = None  # of `scores.parquet`
    whole: Results | None = None  # what these were chosen from, where they are a part

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the summary's order."""
        return tuple(self.summary.runs)

    @property
    def samples(self) -> int:
        """Number of samples in each run."""
        return len(self.frame) // len(self.runs)

    def only(self, runs: Sequence[str]) -> Results:
        """The results of these runs alone, in this order; without a baseline if it is not one."""
        summary = self.summary.model_copy(
            update={
                "runs": {run: self.summary.runs[run] for run in runs},
                "baseline": self.summary.baseline if self.summary.baseline in runs else None,
            }
        )
        frame = pd.concat([self.of(run) for run in runs], ignore_index=True)
        return replace(self, frame=frame, summary=summary, whole=self.whole or self)

    def of(self, run: str) -> pd.DataFrame:
        """The rows of one run, by ascending sample index."""
        return self.frame[self.frame["run"] == run]

    def tables(self, run: str) -> Tables:
        """All rows of one run."""
        return _tables(self.frame, self.ood, self.ood_scores, self.test_scores).of(run)

    def column(self, run: str, name: str) -> np.ndarray:
        """One numeric column of one run as float64, shape (n,), by ascending sample index."""
        return self.of(run)[name].to_numpy(dtype=np.float64, na_value=np.nan)

    def manifest(self, run: str) -> dict[str, Any]:
        """What training wrote about a run; empty where that is not recorded."""
        found = (self.summary.provenance.runs or {}).get(run)
        return found if isinstance(found, dict) else {}

    def kept(self, run: str) -> np.ndarray:
        """True where the clean sample is on the right side of the threshold, shape (n,)."""
        return (self.of(run)["status"] != REJECTED).to_numpy(dtype=bool)

    def ood_sets(self, run: str) -> tuple[str, ...]:
        """The OOD sets that certificates or bounds of this run are about, in the files' order."""
        found: dict[str, None] = {}
        for frame in (self.ood, self.ood_scores):
            if frame is not None:
                found |= dict.fromkeys(frame.loc[frame["run"] == run, "dataset"].unique())
        return tuple(found)

    def ood_of(self, run: str, dataset: str) -> pd.DataFrame | None:
        """The certificates of one run on one OOD set, or None where there are none."""
        return _part(self.ood, run, dataset)

    def ood_scores_of(self, run: str, dataset: str) -> pd.DataFrame | None:
        """The score bounds of one run on one OOD set, or None where there are none."""
        return _part(self.ood_scores, run, dataset)

    def scores_of(self, run: str) -> dict[str, np.ndarray]:
        """The scores of every test sample of a run by part, `test` first; empty where unknown."""
        if self.test_scores is None:
            return {}
        rows = self.test_scores[self.test_scores["run"] == run]
        found = {
            str(part): group["score"].to_numpy(dtype=np.float64)
            for part, group in rows.groupby("part", sort=False)
        }
        return {part: found[part] for part in sorted(found, key=lambda part: part != TEST)}


def _tables(*frames: pd.DataFrame | None) -> Tables:
    return Tables(*(pd.DataFrame() if frame is None else frame for frame in frames))


def _part(frame: pd.DataFrame | None, run: str, dataset: str) -> pd.DataFrame | None:
    if frame is None:
        return None
    rows = frame[(frame["run"] == run) & (frame["dataset"] == dataset)]
    return None if rows.empty else rows


def load_results(folder: Path) -> Results:
    """The verification folder's files, each checked, and checked against each other.

    Where the verification is not complete, the samples that every run has are kept.

    Raises:
        RunError: a file is missing, damaged or incomplete, or the two disagree; the message names
            the file and the field.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: expected a verification folder, but there is none")
    document = read_document(folder)
    summary = summary_of(folder / SUMMARY, document)
    frame = read_frame(folder)
    path = folder / CERTIFICATES
    for run in summary.runs:
        if run not in set(frame["run"]):
            raise RunError(f"{path}: column run: no rows for run {run!r} of {SUMMARY}")
    _check_runs(path, frame, summary)
    ood, scores = read_ood_frame(folder), read_ood_scores(folder)
    for name, other in ((OOD_CERTIFICATES, ood), (OOD_SCORES, scores)):
        if other is not None:
            if summary.side != "id":
                raise RunError(
                    f'{folder / name}: expected side "id" in {SUMMARY} beside it, but got '
                    f"{summary.side!r}"
                )
            _check_runs(folder / name, other, summary)
    by_run = [frame[frame["run"] == run].sort_values("index") for run in summary.runs]
    frame = pd.concat(by_run, ignore_index=True)
    check_rows(path, frame, summary, summary.side)
    if ood is not None:
        check_rows(folder / OOD_CERTIFICATES, ood, summary, "ood")
    everything = read_test_scores(folder)
    if everything is not None:
        _check_runs(folder / SCORES, everything, summary)
        parts = [(TEST, frame)] if summary.side == "id" else []
        if ood is not None:
            parts += [(f"{OOD}{name}", rows) for name, rows in ood.groupby("dataset", sort=False)]
        for part, rows in parts:
            check_same_scores(folder / SCORES, everything, rows, part)
    check_agreement(folder, document, summary, _tables(frame, ood, scores, everything))
    frame = _paired(path, frame, summary)
    fingerprint = hashlib.sha256(plain_file(path).read_bytes()).hexdigest()
    return Results(folder, frame, document, summary, fingerprint, ood, scores, everything)


def _check_runs(path: Path, frame: pd.DataFrame, summary: Summary) -> None:
    for run in sorted(set(frame["run"]) - set(summary.runs)):
        raise RunError(f"{path}: column run: {run!r} is not among the runs of {SUMMARY}")


def _paired(path: Path, frame: pd.DataFrame, summary: Summary) -> pd.DataFrame:
    """The frame, if every run has the same samples; what they share, if it is not complete."""
    own = {run: set(frame.loc[frame["run"] == run, "index"]) for run in summary.runs}
    kept = frame[frame["index"].isin(set.intersection(*own.values()))].reset_index(drop=True)
    if len(kept) == len(frame):
        return frame
    if not summary.complete:
        if kept.empty:
            raise RunError(f"{path}: column index: the runs share no sample yet; verify further")
        return kept
    first = next(iter(own))
    other = next(run for run in own if own[run] != own[first])
    raise RunError(
        f"{path}: column index: runs {first!r} and {other!r} must hold the same samples, but do not"
    )
