"""The smooth activations: value, derivative, and where each of the two turns.

All bounds of a smooth activation follow from this table. Its derivative is monotone between
neighbouring `bends`, so both the range of the derivative and the places where the function is
furthest from a line are found on pieces that are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Interval = tuple[Tensor, Tensor]

FLAT = 40.0  # beyond ±this a function is within 2e-16 of its asymptote, in value and derivative
ALLOWANCE = 2.0**-46  # for rounding in values of size 1; the forms below and torch's stay below it
SOFTPLUS_THRESHOLD = 20.0  # torch's softplus is z itself beyond this
_SOFTPLUS_JUMP = math.log1p(math.exp(-SOFTPLUS_THRESHOLD))  # and falls by this much there
_FAR = 800.0  # where exp(-z) underflows, so that derivatives are at their limits


@dataclass(frozen=True)
class Shape:
    """One smooth activation.

    Attributes:
        name: as people write it.
        torch_function: what the model computes.
        value: the same function in a form that is accurate in its tails.
        derivative: of `value`, for |z| ≤ 800.
        bends: where the second derivative changes its sign, ascending.
        convex_first: whether the function is convex below the first bend.
        lowest: where the function is smallest, if it is not monotone.
    """

    name: str
    torch_function: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    bends: tuple[float, ...] = ()
    convex_first: bool = True
    lowest: float | None = None

    def slope(self, z: Tensor) -> Tensor:
        """The derivative at any z."""
        return self.derivative(z.clamp(-_FAR, _FAR))


def _sigmoid_slope(z: Tensor) -> Tensor:
    return z.sigmoid() * (-z).sigmoid()


def _tanh_slope(z: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * z)


def _softplus(z: Tensor) -> Tensor:
    return z.clamp(min=0.0) + (-z.abs()).exp().log1p()


def _silu_slope(z: Tensor) -> Tensor:
    return z.sigmoid() * (1 + z * (-z).sigmoid())


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z * math.sqrt(0.5))


def _gelu_slope(z: Tensor) -> Tensor:
    return _normal_cdf(z) + z * (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


_GELU_TANH = 2 * math.sqrt(2 / math.pi)  # (1 + tanh u)/2 is the sigmoid of 2u
_GELU_CUBE = 0.044715


def _gelu_tanh(z: Tensor) -> Tensor:
    return z * (_GELU_TANH * (z + _GELU_CUBE * z**3)).sigmoid()


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    inner = _GELU_TANH * (z + _GELU_CUBE * z**3)
    growth = _GELU_TANH * (1 + 3 * _GELU_CUBE * z * z)
    return inner.sigmoid() * (1 + z * growth * (-inner).sigmoid())


def _torch_gelu_tanh(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def _elu(z: Tensor) -> Tensor:
    return z.clamp(min=0.0) + z.clamp(max=0.0).expm1()


SHAPES: dict[str, Shape] = {
    "sigmoid": Shape("Sigmoid", torch.sigmoid, torch.sigmoid, _sigmoid_slope, (0.0,)),
    "tanh": Shape("Tanh", torch.tanh, torch.tanh, _tanh_slope, (0.0,)),
    "softplus": Shape("Softplus", F.softplus, _softplus, torch.sigmoid),
    # The bends solve z·tanh(z/2) = 2; the minimum solves z = −1 − eᶻ.
    "silu": Shape(
        "SiLU", F.silu, F.silu, _silu_slope,
        (-2.399357280515468, 2.399357280515468), False, -1.2784645427610738,
    ),
    # The second derivative is φ(z)·(2 − z²).
    "gelu": Shape(
        "GELU", F.gelu, lambda z: z * _normal_cdf(z), _gelu_slope,
        (-math.sqrt(2.0), math.sqrt(2.0)), False, -0.7517915246935645,
    ),
    # With w' and w the growth and argument of the sigmoid, the bends solve
    # 2w' + zw'' = z·w'²·tanh(w/2), whose two sides cross once on each half of the axis.
    "gelu-tanh": Shape(
        "GELU(tanh)", _torch_gelu_tanh, _gelu_tanh, _gelu_tanh_slope,
        (-1.4185040087908284, 1.4185040087908284), False, -0.7524614220710163,
    ),
    "elu": Shape("ELU", F.elu, _elu, lambda z: z.clamp(max=0.0).exp()),
}  # fmt: skip


def value_range(kind: str, low: Tensor, high: Tensor) -> Interval:
    """Interval of the function on [low, high]: exact, and outward by the rounding in float64."""
    shape = SHAPES[kind]
    points = [low, high] if shape.lowest is None else [low, high, _into(shape.lowest, low, high)]
    values = torch.stack([shape.value(z) for z in points])
    smallest, largest = values.amin(0), values.amax(0)
    smallest = smallest - jump(kind, high)
    return (
        smallest - rounding(smallest.abs(), smallest.dtype),
        largest + rounding(largest.abs(), largest.dtype),
    )


def slope_range(kind: str, low: Tensor, high: Tensor) -> Interval:
    """Interval of the derivative on [low, high]: exact, and outward by the rounding in float64.

    The jump of torch's softplus has no derivative: see `crosses_jump`.
    """
    shape = SHAPES[kind]
    points = [low, high, *(_into(bend, low, high) for bend in shape.bends)]
    slopes = torch.stack([shape.slope(z) for z in points])
    smallest, largest = slopes.amin(0), slopes.amax(0)
    if kind == "softplus":
        largest = torch.where(high > SOFTPLUS_THRESHOLD, torch.ones_like(largest), largest)
    allowance = rounding(torch.zeros_like(low), low.dtype)
    return smallest - allowance, largest + allowance


def jump(kind: str, high: Tensor) -> Tensor:
    """How far below `Shape.value` the model's function may lie on an interval that ends at high."""
    size = _SOFTPLUS_JUMP if kind == "softplus" else 0.0
    return torch.where(high > SOFTPLUS_THRESHOLD, size, 0.0).to(high.dtype)


def crosses_jump(kind: str, low: Tensor, high: Tensor) -> Tensor:
    """Where the model's function is not continuous on [low, high]; there it has no slope."""
    inside = (low <= SOFTPLUS_THRESHOLD) & (high > SOFTPLUS_THRESHOLD)
    return inside if kind == "softplus" else torch.zeros_like(inside)


def rounding(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Allowance for rounding in values of this size; none in float32, for searches alone."""
    return (ALLOWANCE if dtype == torch.float64 else 0.0) * (1 + size)


def _into(point: float, low: Tensor, high: Tensor) -> Tensor:
    """The point of [low, high] nearest to `point`; NaN where an end is."""
    return torch.minimum(torch.maximum(torch.full_like(low, point), low), high)
