"""How an attack goes, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from greg_cert.verify.scorer import Margin


@dataclass(frozen=True)
class AttackPlan:
    """Settings of an attack, as in `attack_radius`."""

    margin: Margin
    norm: float = 2.0
    seed: int = 0
    steps: int = 30
    rounds: int = 12
    restarts: int = 2
    clip: bool = False
    polish: int = 20

    def clipped(self, x: Tensor, delta: Tensor) -> Tensor:
        """The perturbation itself, or what of it stays inside [0, 1] where that is asked for."""
        return (x + delta).clamp(0.0, 1.0) - x if self.clip else delta


@dataclass(frozen=True)
class AttackResult:
    """Smallest perturbations found: `radius` (B,), inf where none was; `delta` (B, ...)."""

    radius: Tensor
    delta: Tensor
