"""What the function of every method gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from greg_cert.detectors.catalogue import Value

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitted:
    """A method that is ready to score."""

    score: Score  # (B, K) logits, or (B, D) features, to (B,) scores; higher = more OOD
    options: Mapping[str, Value] = field(default_factory=dict)  # those that a rule picked
