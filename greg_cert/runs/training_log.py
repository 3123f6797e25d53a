"""The training log of a run, `metrics.jsonl`: a line a measured step, written and read here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from greg_cert.digests import check_digest
from greg_cert.errors import RunError
from greg_cert.files import parse_json, plain_file, write_atomic
from greg_cert.runs.manifest import MANIFEST_FILE, check_file, read_manifest

METRICS_FILE = "metrics.jsonl"
_PLACE = ("step", "stage", "epoch")


class TrainingLogWriter:
    """Rows of metrics, in a JSON-lines file and as TensorBoard events.

    Args:
        metrics: the JSON-lines file; rows after step `done` are cut off, so that a resumed run
            leaves the same rows as one that was never stopped.
        events: folder of the TensorBoard events.
        done: steps done.
        digest: of the rows up to there, where it is known.

    Raises:
        RunError: where the rows of the file are others, or it cannot be written.
    """

    def __init__(self, metrics: Path, events: Path, done: int, digest: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        resumed = done > 0 and metrics.is_file()
        rows = b"".join(_rows_until(metrics, done)) if resumed else b""
        self._digest = hashlib.sha256(rows)
        if resumed and digest is not None:
            check_digest(digest, self.digest, metrics, "journal of the checkpoint")
        self._path = metrics
        with self._writing():
            write_atomic(metrics, rows)
            self._stream = metrics.open("ab")
            self._writer = SummaryWriter(str(events), purge_step=done + 1)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows so far."""
        return self._digest.hexdigest()

    def row(self, stage: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Append one row; `step` counts from the run's beginning, the first being 1.

        Raises:
            RunError: it cannot be written.
        """
        line = json.dumps({"step": step, "stage": stage, "epoch": epoch, **values}).encode() + b"\n"
        self._digest.update(line)
        with self._writing():
            self._stream.write(line)
            self._stream.flush()
            for name, value in values.items():
                self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        with self._writing():
            self._stream.close()
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # such as a full disk
            why = error.strerror or error
            raise RunError(f"metrics: cannot write {self._path}: {why}") from error


def _rows_until(metrics: Path, done: int) -> Iterator[bytes]:
    """Lines of the file up to step `done`, or to one that cannot be read."""
    for line in plain_file(metrics).read_bytes().splitlines(keepends=True):
        try:
            if parse_json(line)["step"] <= done:
                yield line
        except (ValueError, TypeError, LookupError):  # the last line of a killed run
            return


@dataclass(frozen=True)
class TrainingLog:
    """The rows of one run, by ascending step.

    A stage begins where the method changes or the epochs start anew.
    """

    path: Path  # the file they were read from
    steps: np.ndarray  # (n,), the run's first being 1
    stages: tuple[str, ...]  # method of the stage that each row belongs to, n of them
    starts: tuple[int, ...]  # row at which each stage begins, the first being 0
    values: dict[str, np.ndarray]  # every other quantity (n,), NaN in rows that did not measure it

    def column(self, name: str) -> np.ndarray:
        """One quantity, shape (n,); NaN throughout where the run never measured it."""
        return self.values.get(name, np.full(len(self.steps), np.nan))

    def measured(self, name: str) -> bool:
        """Whether any row holds a finite value of the quantity."""
        return bool(np.isfinite(self.column(name)).any())

    def pieces(self) -> Iterator[slice]:
        """The rows of each stage."""
        for first, last in zip(self.starts, (*self.starts[1:], len(self.steps)), strict=True):
            yield slice(first, last)


def read_training_log(folder: Path) -> TrainingLog:
    """The checked contents of `metrics.jsonl` in a run folder, complete or not.

    A last line without its end, as a killed run leaves it, is dropped where it is no whole row. The
    rows of a run that came to its end must be those that its manifest tells of.

    Raises:
        RunError: the file is missing or holds no row, or a line is damaged; names the line. Or
            the rows are not as they were written.
    """
    path = Path(folder) / METRICS_FILE
    try:
        content = plain_file(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path}: the file is missing; expected a run folder") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    lines = content.split(b"\n")
    tail = lines.pop()  # empty, unless the last line has no end
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        rows.append(_row(line, f"{path}: line {number}", rows))
    if _is_json(tail):
        rows.append(_row(tail, f"{path}: line {len(lines) + 1}", rows))
    if not rows:
        raise RunError(f"{path}: expected at least one row, but there is none")
    manifest = read_manifest(path.parent) if (path.parent / MANIFEST_FILE).exists() else {}
    if path.name in manifest.get("digests", {}):  # not yet where the run was stopped
        check_file(manifest, path, hashlib.sha256(content).hexdigest())
    return _log(path, rows)


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _row(line: bytes, where: str, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line as a row that may follow the rows before it."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise RunError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise RunError(f"{where}: expected a JSON object, but got {type(row).__name__}")
    for name in _PLACE:
        if name not in row:
            raise RunError(f"{where}: field {name}: missing")
    for name in ("step", "epoch"):
        if not isinstance(row[name], int) or isinstance(row[name], bool) or row[name] < 1:
            raise RunError(f"{where}: field {name}: expected an integer >= 1, not {row[name]!r}")
    if not isinstance(row["stage"], str):
        raise RunError(f"{where}: field stage: expected a text, but got {row['stage']!r}")
    for name, value in row.items():
        if name not in _PLACE and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RunError(f"{where}: field {name}: expected a number, but got {value!r}")
    if before and row["step"] <= before[-1]["step"]:
        raise RunError(
            f"{where}: field step: expected more than {before[-1]['step']} of the line before, "
            f"but got {row['step']}"
        )
    return row


def _log(path: Path, rows: list[dict[str, Any]]) -> TrainingLog:
    starts = [
        k
        for k, (before, now) in enumerate(pairwise(rows), start=1)
        if now["stage"] != before["stage"] or now["epoch"] < before["epoch"]
    ]
    names = dict.fromkeys(name for row in rows for name in row if name not in _PLACE)
    return TrainingLog(
        path=path,
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        stages=tuple(row["stage"] for row in rows),
        starts=(0, *starts),
        values={
            name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64)
            for name in names
        },
    )
