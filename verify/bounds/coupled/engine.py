"""Coupled bounds with one multiplier a layer, behind the contract of an engine: for any rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from greg_cert.certificates.methods import L2_ONLY
from greg_cert.errors import UsageError
from greg_cert.verify.bounds.coupled.ascent import Ascent
from greg_cert.verify.bounds.coupled.backward import (
    bisect_balls,
    bound_rows,
    first_variables,
    value_and_slope,
)
from greg_cert.verify.bounds.coupled.ball_boxes import (
    Moved,
    ball_boxes,
    layer_norms,
    preactivations,
)
from greg_cert.verify.bounds.coupled.charges import Prices
from greg_cert.verify.bounds.coupled.neurons import Variables, shaped
from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.rounding import absolute_terms

_STEPS = 8  # of the slopes, for each set of rows
_SHARE = 0.5  # of the full step


class CoupledRelaxation:
    """The network over ℓ2 balls, with the best ball multiplier of every layer for every row."""

    def __init__(
        self, graph: Graph, moved: Sequence[Moved], x: Tensor, radii: Tensor, steps: int
    ) -> None:
        self._graph, self._moved, self._x, self._radii = graph, moved, x, radii
        self._steps = steps
        self._terms: Mapping[int, Tensor] | None = None
        if graph.dtype == torch.float64:
            self._terms = absolute_terms(graph, self.preactivations, x, radii)

    @property
    def preactivations(self) -> Mapping[int, Interval]:
        """For each activation node its input's (lower, upper), each (B, *shape)."""
        return preactivations(self._graph, self._moved)

    def lower(self, rows: Tensor) -> Tensor:
        """Lower bounds (B, R) of rows (B, R, K) times the logits; differentiable in `rows`."""
        value, slope = self._at(rows, self._variables(rows.detach()), self._terms)
        return value - self._radii.unsqueeze(1) * slope

    def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Value at the centre and ℓ2 norm of the slope of a linear lower bound, both (B, R)."""
        with torch.no_grad():
            return self._at(rows, self._variables(rows.detach()), self._terms)

    def _at(
        self, rows: Tensor, variables: Variables, terms: Mapping[int, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        bound = bound_rows(self._graph, self._moved, rows, variables, Prices(), terms)
        return value_and_slope(bound, self._x)

    def _variables(self, rows: Tensor) -> Variables:
        slopes = first_variables(self._graph, self._moved, rows.shape[1])
        balls = bisect_balls(self._graph, self._moved, rows, slopes)
        start: Variables = {**slopes, **{("ball", i): mu for i, mu in balls.items()}}
        if not self._steps or not start:
            return start
        ascent = Ascent(dict(start))

        def lowest(variables: Variables) -> Tensor:
            value, slope = self._at(rows, variables, None)
            return value - self._radii.unsqueeze(1) * slope

        ascent.climb(lowest, [_SHARE * (1 - k / self._steps) for k in range(self._steps)])
        with torch.no_grad():  # each row keeps the better of the two
            better = lowest(ascent.variables) > lowest(start)
        return {
            key: torch.where(shaped(better, first), ascent.variables[key], first)
            for key, first in start.items()
        }


class CoupledEngine:
    """Bounds of any rows over ℓ2 balls, at the price of a few backward passes of those rows.

    Args:
        graph: the network.
        norms: of its layers, as by `layer_norms`, where they are known.
        steps: of the slopes, for each set of rows; 0 for CROWN's.
    """

    name = "coupled"
    methods: tuple[str, ...] = ("sdp-crown",)

    def __init__(
        self, graph: Graph, norms: Mapping[int, float] | None = None, steps: int = _STEPS
    ) -> None:
        self._graph, self._steps = graph, steps
        self._norms = layer_norms(graph) if norms is None else norms

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "sdp-crown"
    ) -> CoupledRelaxation:
        """See `Engine.relax`.

        Raises:
            UsageError: for another norm than 2.
        """
        if norm != 2.0:
            raise UsageError(L2_ONLY)
        with torch.no_grad():
            moved = ball_boxes(self._graph, self._norms, inputs, radii)
        return CoupledRelaxation(self._graph, moved, inputs, radii, self._steps)
