"""A network between linear bounds, over the regions it was relaxed for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.crown import RelaxedNetwork, backward_rows
from greg_cert.verify.bounds.interval import all_finite
from greg_cert.verify.bounds.linear_bound import value_at_centre
from greg_cert.verify.bounds.region import Cut, Region


@dataclass(frozen=True, kw_only=True)
class NativeRelaxation(RelaxedNetwork):
    """The network between linear bounds over the regions it was relaxed for.

    Attributes:
        region: where the bounds hold.
        empty: (B,) whether bounds contradict each other, so that the region holds no violation.
        optimise: whether the slopes of lower lines are to be chosen for each row.
        elements: largest number of elements of one coefficient tensor.
    """

    region: Region
    empty: Tensor
    optimise: bool = False
    elements: int = 2**24

    def slope(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A linear lower bound of rows (B, R, K) times the logits: value at the centre and slope.

        Returns:
            (B, R) and (B, R, *input_shape), both differentiable in `rows`.
        """
        slope, offset, size = backward_rows(self, len(self.graph.nodes) - 1, rows)
        return value_at_centre(slope, offset, size, self.region.inputs), slope

    def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Relaxation.linear`."""
        parts = []
        for own, chunk in self._chunks(rows):
            value, slope = own.slope(chunk)
            parts.append((value, self.region.lengths(slope)))
        return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)

    def lower(self, rows: Tensor) -> Tensor:
        """See `Relaxation.lower`."""
        parts = [self.region.lowest(*own.slope(chunk)) for own, chunk in self._chunks(rows)]
        return torch.cat(parts, 1)

    def half_space(self, row: Tensor, constant: Tensor) -> tuple[Cut, Tensor]:
        """The half-space that holds every point of the region where row·f + constant < 0.

        Args:
            row: (B, K).
            constant: (B,), less whatever allowance the caller makes.

        Returns:
            The half-space, and the dual norm (B,) of the slope that it comes from.
        """
        value, slope = self.slope(row.unsqueeze(1))
        length = self.region.lengths(slope)
        # A flat bound that holds is infinitely far; one that does not says nothing.
        distance = (value.squeeze(1) + constant) / length.squeeze(1)
        distance = torch.where(self.empty, torch.inf, distance)
        finite = all_finite(self.preactivations.values())
        distance = torch.where(finite, distance, torch.nan)  # else nothing follows
        tiny = torch.finfo(slope.dtype).tiny
        normal = slope.flatten(1) / length.clamp_min(tiny)
        return Cut(normal, distance), length.squeeze(1)

    def of(self, members: Tensor) -> NativeRelaxation:
        """The relaxation of some samples, without slopes."""
        return replace(
            self,
            region=self.region.of(members),
            preactivations={
                i: (low[members], high[members]) for i, (low, high) in self.preactivations.items()
            },
            empty=self.empty[members],
            terms=None if self.terms is None else {i: t[members] for i, t in self.terms.items()},
            lines={i: tuple(t[members] for t in found) for i, found in self.lines.items()},
            slopes=None,
        )

    def _chunks(self, rows: Tensor) -> Iterator[tuple[NativeRelaxation, Tensor]]:
        """Rows that fit, each time with the relaxation that holds the slopes of these rows."""
        widest = max(torch.Size(n.shape).numel() for n in self.graph.nodes)
        size = max(1, self.elements // (len(rows) * widest))
        for start in range(0, rows.shape[1], size):
            part = slice(start, start + size)
            own = self
            if self.slopes is not None:
                own = replace(self, slopes={i: s[:, part] for i, s in self.slopes.items()})
            yield own, rows[:, part]
