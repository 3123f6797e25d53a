"""What watches a training from outside, for example a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


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
