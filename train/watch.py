"""Noticing the first value that is not finite without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max


class FiniteWatch:
    """Remembers, on the device, the first step at which each watched value was not finite."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def see(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Look at the values of one step."""
        for name, value in values.items():
            good = value.detach().isfinite().all()
            before = self._first.get(name)
            if before is None:
                before = torch.full((), NEVER, dtype=torch.int64, device=value.device)
            self._first[name] = torch.where(good, before, before.clamp_max(step))

    def first(self) -> tuple[int, str] | None:
        """The earliest such step and what was not finite, or None; waits for the device."""
        found = [(int(step), name) for name, step in self._first.items()]
        earliest = min(found, key=lambda pair: pair[0], default=(NEVER, ""))
        return None if earliest[0] == NEVER else earliest
