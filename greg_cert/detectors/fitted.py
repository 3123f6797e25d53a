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

    score: Score  # logits (B, K), features (B, D) or images to scores (B,); higher = more OOD
    options: Mapping[str, Value] = field(default_factory=dict)  # those that a rule picked
