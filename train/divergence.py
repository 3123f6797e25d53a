"""Noticing the first value that is not finite, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from greg_cert.errors import TrainingError
from greg_cert.processes import Processes

_NEVER = torch.iinfo(torch.int64).max


class FirstNonFinite:
    """Remembers, on the device, the first step at which each value was not finite.

    Args:
        processes: that see different values, and stop together.
        checkpoint: the file that the error names as the last good one.
    """

    def __init__(self, processes: Processes, checkpoint: Path) -> None:
        self._processes, self._checkpoint = processes, checkpoint
        self._first: dict[str, Tensor] = {}

    def see(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Look at the values of one step, before which `step` steps were done."""
        for name, value in values.items():
            good = value.detach().isfinite().all()
            before = self._first.get(name)
            if before is None:
                before = torch.full((), _NEVER, dtype=torch.int64, device=value.device)
            self._first[name] = torch.where(good, before, before.clamp_max(step))

    def check(self) -> None:
        """Stop all processes where one has seen such a value; waits for the device.

        Raises:
            TrainingError: names the earliest step, and the value if this process has seen it.
        """
        found = [(int(step), name) for name, step in self._first.items()]
        mine, term = min(found, key=lambda pair: pair[0], default=(_NEVER, ""))
        earliest = min(self._processes.collect(mine))
        if earliest != _NEVER:
            raise self.error(earliest, term if mine == earliest else "a value elsewhere")

    def error(self, step: int, term: str) -> TrainingError:
        """The error that says that `term` is not finite; `step` steps were done before."""
        saved = str(self._checkpoint) if self._checkpoint.exists() else "none yet"
        return TrainingError(
            f"training stopped at step {step + 1}: {term} is not finite; "
            f"last good checkpoint: {saved}"
        )
