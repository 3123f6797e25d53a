"""Adam on the variables of a coupled bound, kept from one ball to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.backward import Variables

_FIRST, _SECOND = 0.7, 0.99  # Adam's two means; a longer memory overshoots
_RATES = {"weights": 0.05}
_RATE = 0.1  # of slopes and of logarithms


def falling(first: float, steps: int) -> list[float]:
    """Rates of a search that ends: down to a tenth of the first."""
    return [first * (1.0 - 0.9 * k / steps) for k in range(steps)]


class Ascent:
    """Variables (B, ...) of a batch, and the means that Adam keeps of their gradients."""

    def __init__(self, variables: Variables) -> None:
        self.variables = variables
        self._mean = {key: torch.zeros_like(v) for key, v in variables.items()}
        self._square = {key: torch.zeros_like(v) for key, v in variables.items()}
        self._done = 0

    def climb(self, value: Callable[[Variables], Tensor], rates: list[float]) -> None:
        """One step for each of `rates`, the shares of the full step, up `value` (B, R)."""
        for rate in rates if self.variables else ():
            leaves = {k: v.detach().requires_grad_() for k, v in self.variables.items()}
            with torch.enable_grad():
                total = value(leaves).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            self._step(dict(zip(leaves, found, strict=True)), rate)

    def _step(self, gradients: Mapping[tuple[str, int], Tensor | None], rate: float) -> None:
        self._done += 1
        for key, gradient in gradients.items():
            if gradient is None:
                continue
            gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            mean, square = self._mean[key], self._square[key]
            mean.mul_(_FIRST).add_(gradient, alpha=1 - _FIRST)
            square.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
            size = (square / (1 - _SECOND**self._done)).sqrt()
            size = size.clamp_min(torch.finfo(size.dtype).tiny ** 0.5)  # squares below are lost
            step = rate * _RATES.get(key[0], _RATE) / (1 - _FIRST**self._done)
            self.variables[key] = torch.addcdiv(self.variables[key], mean, size, value=step)

    def of(self, members: Tensor) -> Ascent:
        """The same for some samples."""
        found = Ascent({k: v[members] for k, v in self.variables.items()})
        found._mean = {k: v[members] for k, v in self._mean.items()}
        found._square = {k: v[members] for k, v in self._square.items()}
        found._done = self._done
        return found

    def put(self, members: Tensor, other: Ascent) -> None:
        """Take over where some samples stand in another ascent."""
        for name in ("variables", "_mean", "_square"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, values in theirs.items():
                mine[key][members] = values
        self._done = max(self._done, other._done)
