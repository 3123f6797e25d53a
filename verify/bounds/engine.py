"""What `certify` needs from bound propagation, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from greg_cert.verify.bounds.interval import Interval

RELAXATIONS = ("crown", "crown-ibp")


class Relaxation(Protocol):
    """A network relaxed over one ball a sample; every number is proven over the whole ball."""

    @property
    def preactivations(self) -> Mapping[int, Interval]:
        """For each activation node its input's (lower, upper), each (B, *shape)."""

    def lower(self, rows: Tensor) -> Tensor:
        """Lower bounds (B, R) of rows (B, R, K) times the logits; differentiable in `rows`."""

    def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A linear lower bound of rows (B, R, K) times the logits, over each ball.

        Returns:
            Its value at the centre and the dual norm of its slope, both (B, R).
        """


class Engine(Protocol):
    """Bound propagation for one network."""

    name: str

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> Relaxation:
        """Relax the network over the balls of `radii` (B,) about `inputs` (B, ...), float64.

        Args:
            inputs: centres.
            radii: positive radii, one a sample.
            norm: 2.0 or inf.
            method: how intermediate bounds are found: `crown`, or `crown-ibp` (faster, looser).
        """


def finite_bounds(relaxation: Relaxation) -> Tensor:
    """Samples (B,) all of whose pre-activation bounds are finite; nothing follows for others."""
    parts = [
        (low.isfinite() & high.isfinite()).flatten(1).all(1)
        for low, high in relaxation.preactivations.values()
    ]
    return torch.stack(parts).all(0) if parts else torch.tensor(True)
