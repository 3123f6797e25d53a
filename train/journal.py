"""What a run tells of itself while it trains: `metrics.jsonl`, TensorBoard, and an observer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from greg_cert.digests import check_digest
from greg_cert.files import write_atomic


class Observer(Protocol):
    """Sees every step, for example to draw a progress bar."""

    def begin(self, steps: int, done: int) -> None:
        """Training of `steps` steps begins, or goes on after `done`."""

    def step(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        """One step is done; `values` is empty where nothing was measured."""


class SilentObserver:
    """Sees and says nothing."""

    def begin(self, steps: int, done: int) -> None:
        """Does nothing."""

    def step(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        """Does nothing."""


class Journal:
    """Rows of metrics, in a JSON-lines file and as TensorBoard events.

    Args:
        metrics: the JSON-lines file; rows after step `done` are cut off, so that a resumed run
            leaves the same rows as one that was never stopped.
        events: folder of the TensorBoard events.
        done: steps done.
        digest: of the rows up to there, where it is known.

    Raises:
        RunError: where the rows of the file are others.
    """

    def __init__(self, metrics: Path, events: Path, done: int, digest: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        resumed = done > 0 and metrics.is_file()
        kept = list(_rows(metrics, done)) if resumed else []
        self._digest = hashlib.sha256(b"".join(kept))
        if resumed and digest is not None:
            check_digest(digest, self.digest, metrics, "journal of the checkpoint")
        write_atomic(metrics, b"".join(kept))
        self._stream = metrics.open("ab")
        self._writer = SummaryWriter(str(events), purge_step=done + 1)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows so far."""
        return self._digest.hexdigest()

    def row(self, stage: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Append one row; `step` counts from the run's beginning, the first being 1."""
        line = json.dumps({"step": step, "stage": stage, "epoch": epoch, **values}).encode() + b"\n"
        self._digest.update(line)
        self._stream.write(line)
        self._stream.flush()
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._stream.close()
        self._writer.close()


def _rows(metrics: Path, done: int) -> Iterator[bytes]:
    """Lines of the file up to step `done`, or to one that cannot be read."""
    for line in metrics.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= done:
                yield line
        except (ValueError, TypeError, LookupError):  # the last line of a killed run
            return
