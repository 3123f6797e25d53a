"""The set a bound is about: a ball, or the part of it where a violation could still lie.

If a linear bound shows that every violation in the ball lies beyond a hyperplane, then all other
bounds are only needed beyond it too, and are tighter there. A hyperplane at a distance of more than
the radius leaves nothing: the whole ball is proven.

Source: bounds under an output constraint are those of Kotha et al., "Provably Bounding Neural
Network Preimages", NeurIPS 2023 (INVPROP); here the constraint is brought to the input first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.verify.bounds.linear_bound import slope_norms

_ROUNDING = 2.0**-42  # 2¹⁰ units in the last place, relative to the terms of a square root
_MIXTURES = 17  # convex combinations of two cuts that are tried
_BISECTIONS = 12
_STEEPEST = 64.0  # multiplier of a cut, relative to the row's own slope


@dataclass(frozen=True)
class Cut:
    """A half-space that holds every violation: normal·(x′ − x) ≤ −distance.

    Attributes:
        normal: (B, D) of dual norm 1, or less.
        distance: (B,) from the centre, in the norm of the ball; inf where there is no violation,
            negative where the centre itself lies inside.
    """

    normal: Tensor
    distance: Tensor

    def of(self, members: Tensor) -> Cut:
        """The cuts of some samples."""
        return Cut(self.normal[members], self.distance[members])


@dataclass(frozen=True)
class OutputConstraint:
    """What holds for every violation: row·f + constant < 0.

    Attributes:
        row: (B, K).
        constant: (B,).
        steepness: (B,) dual norm of the slope of its linear bound.
    """

    row: Tensor
    constant: Tensor
    steepness: Tensor

    def of(self, members: Tensor) -> OutputConstraint:
        """Those of some samples."""
        return OutputConstraint(self.row[members], self.constant[members], self.steepness[members])


@dataclass(frozen=True)
class Region:
    """Balls of `radii` (B,) about `inputs` (B, ...), each beyond its cut where there is one."""

    inputs: Tensor
    radii: Tensor
    norm: float
    cut: Cut | None = None

    def of(self, members: Tensor) -> Region:
        """The regions of some samples."""
        cut = None if self.cut is None else self.cut.of(members)
        return Region(self.inputs[members], self.radii[members], self.norm, cut)

    def lowest(self, value: Tensor, slope: Tensor) -> Tensor:
        """Lower bounds (B, R) of value + slope·(x′ − x) over each region.

        Args:
            value: (B, R) at the centres.
            slope: (B, R, ...), or (1, R, ...) where all samples share it.
        """
        length, radius, cut = self.lengths(slope), self.radii.unsqueeze(1), self.cut
        if cut is None:
            return value - radius * length
        share, slope = self._share(slope, length), slope.flatten(2)
        if self.norm == 2.0:
            return self._l2_beyond(cut, value, length, self._along(cut, slope, length), share)
        # Weak duality: value + λ·distance − radius·‖slope + λ·normal‖*, for λ = share·length.
        # Beyond either end of the ball it says no more, and an infinite distance would give NaN.
        distance = cut.distance.unsqueeze(1).clamp(-radius, 2 * radius)
        moved = slope + (share * length).unsqueeze(2) * cut.normal.unsqueeze(1)
        stretched = moved.abs().sum(2) + _ROUNDING * length * (1 + share)
        return value + share * length * distance - radius * stretched

    def lowest_by_cosine(self, value: Tensor, length: Tensor, along: Tensor | None) -> Tensor:
        """`lowest` in ℓ2, for slopes of which only lengths and cosines with the normal are known.

        Args:
            value: (B, R) at the centres.
            length: (R,) or (B, R) lengths of the slopes.
            along: (B, R) upper bounds of the cosines; None for regions without a cut.
        """
        radius = self.radii.unsqueeze(1)
        if self.cut is None or along is None:
            return value - radius * length
        share = self._l2_share(self.cut, along)
        return self._l2_beyond(self.cut, value, length, along, share)

    def multipliers(self, slope: Tensor) -> Tensor:
        """Multipliers (B, R) ≥ 0 of the cut that make `lowest` largest; the cut's normal as unit.

        Raises:
            ValueError: for a region without a cut.
        """
        if self.cut is None:
            raise ValueError("expected a region with a cut")
        length = self.lengths(slope)
        return self._share(slope, length) * length

    def lengths(self, slope: Tensor) -> Tensor:
        """Dual norms (B or 1, R) of slopes (B or 1, R, ...)."""
        return slope_norms(slope, self.norm)

    def _share(self, slope: Tensor, length: Tensor) -> Tensor:
        """The multiplier over the slope's own length; any value ≥ 0 is sound, this one is best."""
        assert self.cut is not None
        with torch.no_grad():
            if self.norm == 2.0:
                return self._l2_share(self.cut, self._along(self.cut, slope.flatten(2), length))
            radius = self.radii.unsqueeze(1)
            distance = self.cut.distance.unsqueeze(1).clamp(-radius, radius)
            return self._bisect(slope.flatten(2), length, distance / radius)

    def _l2_share(self, cut: Cut, along: Tensor) -> Tensor:
        """ℓ2: the best multiplier over the slope's own length, in closed form."""
        with torch.no_grad():
            radius = self.radii.unsqueeze(1)
            distance = cut.distance.unsqueeze(1).clamp(-radius, radius)
            across = (1 - along**2).clamp_min(0.0).sqrt()
            room = (radius**2 - distance**2).clamp_min(0.0).sqrt()
            best = across * distance / room.clamp_min(1e-6 * radius) - along
            return best.clamp(0.0, _STEEPEST).nan_to_num(nan=0.0)

    def _bisect(self, slope: Tensor, length: Tensor, depth: Tensor) -> Tensor:
        """ℓ∞: where the concave dual function of the multiplier stops to rise."""
        assert self.cut is not None
        unit = slope / length.clamp_min(torch.finfo(slope.dtype).tiny).unsqueeze(2)
        normal = self.cut.normal.unsqueeze(1)
        low, high = torch.zeros_like(length + depth), torch.full_like(length + depth, _STEEPEST)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            moved = unit + middle.unsqueeze(2) * normal
            rising = depth - (normal * moved.sign()).sum(2) > 0
            low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
        return low

    @staticmethod
    def _along(cut: Cut, slope: Tensor, length: Tensor) -> Tensor:
        """Cosine (B, R) between each slope and the cut's normal."""
        if len(slope) == 1:
            product = cut.normal @ slope[0].T
        else:
            product = torch.einsum("brd,bd->br", slope, cut.normal)
        return product / length.clamp_min(torch.finfo(slope.dtype).tiny)

    def _l2_beyond(
        self, cut: Cut, value: Tensor, length: Tensor, along: Tensor, share: Tensor
    ) -> Tensor:
        """`lowest` in ℓ2, by closed form; distances are cut off as there."""
        radius = self.radii.unsqueeze(1)
        distance = cut.distance.unsqueeze(1).clamp(-radius, 2 * radius)
        square = (1 + 2 * share * along + share**2).clamp_min(0.0)
        # The allowance covers the rounding of a sum that may cancel, and of a normal that is not
        # quite of length 1.
        stretched = (square + _ROUNDING * (1 + share) ** 2).sqrt()
        return value - length * (radius * stretched - share * distance)


def tighter_cut(old: Cut | None, new: Cut, norm: float) -> Cut:
    """The furthest half-space that follows from two: the best of some convex combinations.

    Both hold for every violation, so any combination μ·old + (1 − μ)·new does, at a distance of
    (μ·d + (1 − μ)·d′)/‖μ·n + (1 − μ)·n′‖*, which may exceed both.
    """
    none = Cut(torch.zeros_like(new.normal), torch.zeros_like(new.distance))
    old = none if old is None else old
    first, second = _finite(old), _finite(new)
    shares = torch.linspace(0.0, 1.0, _MIXTURES, dtype=new.normal.dtype, device=new.normal.device)
    weight = shares.reshape(1, -1, 1)
    normals = weight * first.normal.unsqueeze(1) + (1 - weight) * second.normal.unsqueeze(1)
    # Opposite normals: the set is empty, but leave that to others.
    lengths = slope_norms(normals, norm).clamp_min(1e-6)
    offsets = shares * first.distance.unsqueeze(1) + (1 - shares) * second.distance.unsqueeze(1)
    distances = offsets / lengths
    distances = distances - _ROUNDING * distances.abs()
    best = distances.argmax(1, keepdim=True)
    normal = normals.gather(1, best.unsqueeze(2).expand(-1, -1, normals.shape[2])).squeeze(1)
    normal = normal / lengths.gather(1, best)
    empty = old.distance.isposinf() | new.distance.isposinf()  # minus infinity says nothing
    distance = torch.where(empty, math.inf, distances.gather(1, best).squeeze(1))
    return Cut(normal, distance)


def _finite(cut: Cut) -> Cut:
    """The cut, or one that cuts nothing off where it is not finite."""
    usable = cut.distance.isfinite() & cut.normal.isfinite().all(1)
    return Cut(
        torch.where(usable.unsqueeze(1), cut.normal, 0.0), torch.where(usable, cut.distance, 0.0)
    )
