"""Adam's means of gradients, for searches that project or drop samples between two steps.

By hand: the first step of `torch.optim.Adam` imports torch._dynamo, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K")


class Moments(Generic[K]):
    """Means of the gradients (B, ...) of some variables, and of their squares.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """

    def __init__(self, variables: Mapping[K, Tensor], first: float, second: float) -> None:
        self._first, self._second, self._steps = first, second, 0
        self._mean = {key: torch.zeros_like(v) for key, v in variables.items()}
        self._square = {key: torch.zeros_like(v) for key, v in variables.items()}

    def begin_step(self) -> float:
        """Count a step; the share of its weights that the first mean has seen by then."""
        self._steps += 1
        return 1.0 - self._first**self._steps

    def update(self, key: K, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The first mean, still to be divided by its share, and the root of the second."""
        mean, square = self._mean[key], self._square[key]
        mean.mul_(self._first).add_(gradient, alpha=1 - self._first)
        square.mul_(self._second).addcmul_(gradient, gradient, value=1 - self._second)
        return mean, (square / (1 - self._second**self._steps)).sqrt()

    def of(self, members: Tensor) -> Moments[K]:
        """The same for some samples."""
        found: Moments[K] = Moments({}, self._first, self._second)
        found._mean = {k: v[members] for k, v in self._mean.items()}
        found._square = {k: v[members] for k, v in self._square.items()}
        found._steps = self._steps
        return found

    def put(self, members: Tensor, other: Moments[K]) -> None:
        """Take over where some samples stand in another search."""
        for mine, theirs in ((self._mean, other._mean), (self._square, other._square)):
            for key, values in theirs.items():
                mine[key][members] = values
        self._steps = max(self._steps, other._steps)
