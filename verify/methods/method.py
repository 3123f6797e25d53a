"""What a method of `certify` is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.radius.problem import Problem, Prove
from greg_cert.verify.scorer import Detector

Columns = Mapping[str, Tensor | NDArray[np.generic]]
"""Columns (B,) by name."""


def at_least(least: float, default: Any) -> Any:
    """A field of a dataclass that may not be smaller than `least`, nor NaN."""
    return field(default=default, metadata={"least": least})


def check_least(settings: Any) -> None:
    """Raises `UsageError` for a field of a dataclass that is smaller than it may be."""
    for f in fields(settings):
        value, least = getattr(settings, f.name), f.metadata.get("least")
        if least is not None and not value >= least:
            raise UsageError(f"expected {f.name} >= {least}, but got {value}")


class Method(ABC):  # noqa: B024  what its kinds have in common is their settings
    """Settings of one way to radii: a frozen dataclass, whose fields are options of `certify`.

    Raises:
        UsageError: for a setting out of range.
    """

    def __post_init__(self) -> None:
        check_least(self)


class Proof(Method):
    """Proves radii of whatever goal it is given."""

    begins_at: ClassVar[str | None] = "crown"
    """The method from whose radii the search begins, where both are chosen."""

    @abstractmethod
    def prepare(self, problem: Problem) -> Prove:
        """This method for one network.

        Raises:
            EngineError: for an engine that it cannot do with.
            UsageError: for a norm that it has no radii in.
        """


@dataclass(frozen=True)
class Rows:
    """A batch of samples as `certify` sees it.

    Attributes:
        x: (B, ...) in float64.
        names: (B,) for their random draws, on the CPU.
        labels: (B,) where certificates are of the class too.
        gap: (B,) distance of the score to the threshold.
        wrong: (B,) whether the clean sample is on the wrong side.
        attacked: (B,) where an attack succeeded; NaN where none was made.
    """

    x: Tensor
    names: Tensor
    labels: Tensor | None
    gap: Tensor
    wrong: Tensor
    attacked: Tensor


class Sampled(Method):
    """Says something of a model that is only called, in columns of its own."""

    @abstractmethod
    def columns(self, detector: Detector, rows: Rows, norm: float, max_radius: float) -> Columns:
        """Its columns for a batch."""
