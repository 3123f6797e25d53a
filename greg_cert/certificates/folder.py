"""The files of a verification folder, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from greg_cert.certificates.format import (
    CERTIFICATES,
    OOD_CERTIFICATES,
    OOD_SCORES,
    SCORES,
    SUMMARY,
)
from greg_cert.certificates.summary_file import SCHEMA, summary_of
from greg_cert.digests import sealed
from greg_cert.files import write_atomic
from greg_cert.frames import frame_bytes


class Tables(NamedTuple):
    """The rows of a folder, or those of one of its runs; empty where there is no file."""

    certificates: pd.DataFrame
    ood: pd.DataFrame
    bounds: pd.DataFrame
    scores: pd.DataFrame

    def of(self, run: str) -> Tables:
        """The rows of one run."""
        return Tables(*(t[t["run"] == run] if len(t) else t for t in self))


TABLES = (CERTIFICATES, OOD_CERTIFICATES, OOD_SCORES, SCORES)
"""The file of each of `Tables`."""


def write_folder(out: Path, runs: Sequence[Tables], summary: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write the summary and the tables that have rows; one of an earlier call without is removed.

    Returns:
        The files, the summary first.

    Raises:
        OSError: where one cannot be written.
        RunError: for a summary that `load_results` would not read.
    """
    document = {"schema": SCHEMA, **summary}
    if any(len(tables.certificates) for tables in runs):  # a folder without is not read again
        summary_of(out / SUMMARY, document)
    files = []
    for name, frames in zip(TABLES, zip(*runs, strict=True), strict=True):
        some = [frame for frame in frames if len(frame)]
        if some:
            content = frame_bytes(pd.concat(some, ignore_index=True))
            files.append(write_atomic(out / name, content))
        else:
            (out / name).unlink(missing_ok=True)
    text = json.dumps(sealed(document), indent=2, allow_nan=False) + "\n"
    return (write_atomic(out / SUMMARY, text), *files)
