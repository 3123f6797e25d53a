"""What a run tells of itself while it trains: `metrics.jsonl`, TensorBoard, and an observer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

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
    """

    def __init__(self, metrics: Path, events: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = []
        if done and metrics.is_file():
            for line in metrics.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the last line of a killed run
                    break
                if row["step"] <= done:
                    kept.append(line + "\n")
        write_atomic(metrics, "".join(kept))
        self._stream = metrics.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(events), purge_step=done + 1)

    def row(self, stage: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Append one row; `step` counts from the run's beginning, the first being 1."""
        line = {"step": step, "stage": stage, "epoch": epoch, **values}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._stream.close()
        self._writer.close()
