"""What tests of training ask of a run, and an observer that stops one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from greg_cert.runs.records import RunFolder


def rows_of(folder: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The rows of metrics, of one stage where it is named."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if stage in (None, row["stage"])]


def same_weights(a: RunFolder, b: RunFolder) -> bool:
    one, two = load_file(a.weights_file), load_file(b.weights_file)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


class Stopped(Exception):
    """Stands for a power cut."""


class Stopper:
    """Counts steps from where a run goes on, and stops it at one of them."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.done, self.steps = at, 0, 0

    def begin(self, steps: int, done: int) -> None:
        self.steps, self.done = steps, done

    def step(self, stage: str, epoch: int, values: object) -> None:
        self.done += 1
        if self.done == self.at:
            raise Stopped
