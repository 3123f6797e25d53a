"""Adam on the variables of a coupled bound, kept from one ball to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.neurons import Variables
from greg_cert.verify.bounds.moments import Moments

_MEANS = 0.7, 0.99  # how long Adam's two last; a longer memory overshoots
_RATES = {"weights": 0.05}
_RATE = 0.1  # of slopes and of logarithms


def falling(first: float, steps: int) -> list[float]:
    """Rates of a search that ends: down to a tenth of the first."""
    return [first * (1.0 - 0.9 * k / steps) for k in range(steps)]


class Ascent:
    """Variables (B, ...) of a batch, and the means that Adam keeps of their gradients."""

    def __init__(self, variables: Variables) -> None:
        self.variables = variables
        self._moments = Moments(variables, *_MEANS)

    def climb(self, value: Callable[[Variables], Tensor], rates: list[float]) -> None:
        """One step for each of `rates`, the shares of the full step, up `value` (B, R)."""
        for rate in rates if self.variables else ():
            leaves = {k: v.detach().requires_grad_() for k, v in self.variables.items()}
            with torch.enable_grad():
                total = value(leaves).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            self._step(dict(zip(leaves, found, strict=True)), rate)

    def _step(self, gradients: Mapping[tuple[str, int], Tensor | None], rate: float) -> None:
        share = self._moments.begin_step()
        for key, gradient in gradients.items():
            if gradient is None:
                continue
            gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            mean, size = self._moments.update(key, gradient)
            size = size.clamp_min(torch.finfo(size.dtype).tiny ** 0.5)  # squares below are lost
            step = rate * _RATES.get(key[0], _RATE) / share
            self.variables[key] = torch.addcdiv(self.variables[key], mean, size, value=step)

    def of(self, members: Tensor) -> Ascent:
        """The same for some samples."""
        found = Ascent({k: v[members] for k, v in self.variables.items()})
        found._moments = self._moments.of(members)
        return found

    def put(self, members: Tensor, other: Ascent) -> None:
        """Take over where some samples stand in another ascent."""
        for key, values in other.variables.items():
            self.variables[key][members] = values
        self._moments.put(members, other._moments)
