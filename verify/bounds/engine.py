"""What proofs of radii need from bound propagation, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.bounds.interval import Interval, all_finite
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import OutputConstraint, Region


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
    """Bound propagation for one network.

    Attributes:
        name: as users write it.
        methods: how it can find intermediate bounds.
    """

    name: str
    methods: tuple[str, ...]

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> Relaxation:
        """Relax the network over the balls of `radii` (B,) about `inputs` (B, ...), float64.

        Args:
            inputs: centres.
            radii: positive radii, one a sample.
            norm: 2.0 or inf.
            method: how intermediate bounds are found: `crown`, `crown-ibp` (faster, looser) or
                another of `methods`.
        """


@runtime_checkable
class RegionEngine(Engine, Protocol):
    """An engine that bounds parts of balls too, so that these can be cut and split."""

    def relax_region(
        self,
        region: Region,
        method: str = "crown",
        *,
        outer: NativeRelaxation | None = None,
        constraint: OutputConstraint | None = None,
    ) -> NativeRelaxation:
        """Relax the network where violations may still lie.

        Args:
            region: balls, with or without cuts.
            method: one of `methods`.
            outer: a relaxation over sets that hold these; its bounds are taken over.
            constraint: of the violations that the region is about; needs `outer` and a cut.
        """


def check_method(engine: Engine, method: str) -> None:
    """Refuse a way to find intermediate bounds that the engine does not have."""
    if method not in engine.methods:
        raise UsageError(f"expected relaxation in {', '.join(engine.methods)}, but got {method!r}")


def finite_bounds(relaxation: Relaxation) -> Tensor:
    """Samples (B,) all of whose pre-activation bounds are finite; nothing follows for others."""
    return all_finite(relaxation.preactivations.values())
