"""Lines around a smooth activation on an interval, for CROWN's backward pass.

The slopes are chosen to be tight, the intercepts to be sound: for whatever slope was chosen, an
intercept is the largest distance of the function from that slope, with a proven allowance for how
well its place was found. So no rounding and no bad choice of a slope can make a line cross the
function. The tight choice follows Zhang et al., "Efficient Neural Network Robustness Certification
with General Activation Functions", NeurIPS 2018, section 3.3: the chord, or a tangent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.verify.graph.smooth import FLAT, SHAPES, Shape, jump, rounding, slope_range

_TOUCH_STEPS = 12  # of bisection, for the choice of a slope: only tightness is at stake
_PEAK_STEPS = 28  # for an intercept: 80/2²⁸ squared is of the size of the rounding


def relax_smooth(kind: str, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """slope_low, intercept_low, slope_high, intercept_high of two lines around σ on [low, high].

    slope_low·z + intercept_low ≤ σ(z) ≤ slope_high·z + intercept_high for all z of the interval.
    Among the lines that hold these are nearly those of the smallest area. Where an end is not
    finite all four are NaN. Of any shape, for `kind` a key of `SHAPES`.
    """
    finite = low.isfinite() & high.isfinite()
    low, high = torch.where(finite, low, torch.nan), torch.where(finite, high, torch.nan)
    low, high = torch.minimum(low, high), torch.maximum(low, high)  # rounding may reverse them
    smallest, largest = slope_range(kind, low, high)
    above, below = _Signed(SHAPES[kind], 1.0), _Signed(SHAPES[kind], -1.0)
    # A slope that the function has somewhere: for the noise of the chord of a narrow interval.
    slope_high = torch.clamp(_tight_slope(above, low, high), smallest, largest)
    slope_low = torch.clamp(_tight_slope(below, low, high), -largest, -smallest)
    intercept_high = _intercept_above(above, slope_high, low, high)
    intercept_low = _intercept_above(below, slope_low, low, high)
    return -slope_low, -intercept_low - jump(kind, high), slope_high, intercept_high


@dataclass(frozen=True)
class _Signed:
    """sign·σ: a line below σ is one above −σ."""

    shape: Shape
    sign: float

    def value(self, z: Tensor) -> Tensor:
        return self.sign * self.shape.value(z)

    def slope(self, z: Tensor) -> Tensor:
        return self.sign * self.shape.slope(z)

    def concave_pieces(self) -> list[tuple[float, float]]:
        """Intervals that hold every z where the function is concave."""
        edges = (-math.inf, *self.shape.bends, math.inf)
        first = int(self.shape.convex_first == (self.sign > 0))
        return list(zip(edges[first::2], edges[first + 1 :: 2], strict=False))


def _tight_slope(f: _Signed, low: Tensor, high: Tensor) -> Tensor:
    """The slope at the middle of the lowest concave function above f, nearly.

    A line above f has the smallest area when it is lowest at the middle, and the concave hull says
    how low that can be. The hull is the highest chord there, or f itself: so of the candidates
    the one that is highest at the middle is the right one.
    """
    middle = low / 2 + high / 2
    at_low, at_high, at_middle = f.value(low), f.value(high), f.value(middle)
    slope, height = f.slope(middle), at_middle
    chord = (at_high - at_low) / (high - low)
    candidates = [(chord, at_low / 2 + at_high / 2)]
    if f.shape.bends:  # else the hull is the chord, or the function
        for end, at_end, other in ((low, at_low, high), (high, at_high, low)):
            touch = _touch(f, end, at_end, middle, other)
            line = (f.value(touch) - at_end) / (touch - end)
            across = (touch - middle) * (other - middle) >= 0
            value = at_end + line * (middle - end)
            candidates.append((line, torch.where(across, value, -torch.inf)))
    for line, value in candidates:
        better = value > height  # false for NaN, which an interval of width 0 gives
        slope, height = torch.where(better, line, slope), torch.where(better, value, height)
    return slope


def _touch(f: _Signed, end: Tensor, at_end: Tensor, middle: Tensor, other: Tensor) -> Tensor:
    """Between the middle and the other end, where the tangent of f passes through `end`."""
    near, far = middle.clamp(-FLAT, FLAT), other.clamp(-FLAT, FLAT)
    for _ in range(_TOUCH_STEPS):
        z = (near + far) / 2
        under = f.value(z) + f.slope(z) * (end - z) < at_end
        near, far = torch.where(under, z, near), torch.where(under, far, z)
    return far


def _intercept_above(f: _Signed, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Upper bound of the largest f(z) − slope·z on [low, high].

    That is at an end, or inside a concave piece of f where f' = slope. Bisection brackets that
    point by a ≤ b; there the function is below its tangents at a and at b, whichever is lower.
    Where f' has no such point in the piece, the bracket shrinks to the end that is the largest.
    """

    def residual(z: Tensor) -> Tensor:
        return f.value(z) - slope * z

    best = torch.maximum(residual(low), residual(high))
    for start, stop in f.concave_pieces():
        # Beyond ±FLAT a concave function rises above its value there by less than the allowance.
        a = low.clamp(max(start, -FLAT), min(stop, FLAT))
        b = high.clamp(max(start, -FLAT), min(stop, FLAT))
        inside = (a < b) & (low < high)
        for _ in range(_PEAK_STEPS):
            z = (a + b) / 2
            rising = f.slope(z) > slope
            a, b = torch.where(rising, z, a), torch.where(rising, b, z)
        from_a = residual(a) + (f.slope(a) - slope).clamp(min=0.0) * (b - a)
        from_b = residual(b) + (slope - f.slope(b)).clamp(min=0.0) * (b - a)
        best = torch.where(inside, torch.maximum(best, torch.minimum(from_a, from_b)), best)
    reach = torch.maximum(low.abs(), high.abs())
    size = slope.abs() * reach + torch.maximum(f.value(low).abs(), f.value(high).abs())
    return best + rounding(size, low.dtype)
