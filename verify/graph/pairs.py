"""MaxMin as |·| between two rotations of pairs of channels, which fold into layers beside them.

With s = (a + b)/√2 and d = (a − b)/√2, max(a, b) = (s + |d|)/√2 and min(a, b) = (s − |d|)/√2. Both
maps are orthogonal: nothing of an ℓ2 ball is lost. Source: Anil et al., ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv, Linear

_ROOT = math.sqrt(0.5)


@dataclass(frozen=True)
class Rotation:
    """y[sums] = (x[first] + x[second])/√2 and y[differences] = (x[first] − x[second])/√2.

    Attributes:
        first: C/2 channels of x; with `second` all of them, each once.
        second: the other C/2.
        sums: C/2 channels of y.
        differences: the other C/2.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    sums: tuple[int, ...]
    differences: tuple[int, ...]

    def of_rows(self, x: Tensor) -> Tensor:
        """The map of x (C, ...), pixel by pixel."""
        first, second, places = _indices(self, x.device)
        a, b = x.index_select(0, first), x.index_select(0, second)
        return torch.cat((_ROOT * (a + b), _ROOT * (a - b))).index_select(0, places)

    @property
    def transposed(self) -> Rotation:
        """The inverse map."""
        return Rotation(self.sums, self.differences, self.first, self.second)

    def within(self, groups: int) -> bool:
        """Whether pairs stay in one of so many blocks of channels."""
        block = 2 * len(self.first) // groups
        every = zip(self.first, self.second, self.sums, self.differences, strict=True)
        return all(len({c // block for c in pair}) == 1 for pair in every)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _indices(rotation: Rotation, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The first and second of each pair, and where each channel of y is in (sums, differences)."""

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)

    places = tensor((*rotation.sums, *rotation.differences)).argsort()
    return tensor(rotation.first), tensor(rotation.second), places


def rotated_output(op: Conv | Linear, rotation: Rotation) -> Conv | Linear | None:
    """The layer followed by the rotation as one layer; None where groups of channels forbid it."""
    if isinstance(op, Conv) and not rotation.within(op.groups):
        return None
    return replace(op, weight=rotation.of_rows(op.weight), bias=rotation.of_rows(op.bias))


def takes_rotated(op: Conv | Linear) -> bool:
    """Whether `rotated_input` can be had."""
    return isinstance(op, Linear) or op.groups == 1


def rotated_input(op: Conv | Linear, rotation: Rotation) -> Conv | Linear:
    """The layer of rotated channels as one layer of the channels themselves.

    A linear layer may read them flattened, all pixels of a channel together.
    """
    channels = 2 * len(rotation.first)
    columns = op.weight.unflatten(1, (channels, -1)).transpose(0, 1)  # (C, O, …)
    weight = rotation.transposed.of_rows(columns).transpose(0, 1)
    return replace(op, weight=weight.reshape(op.weight.shape).contiguous())


def commutes(op: Conv) -> bool:
    """Whether the layer does the same to every channel, as an average pool does."""
    alike = op.groups == op.input_shape[0] == len(op.weight)
    return alike and bool((op.weight == op.weight[:1]).all()) and not bool(op.bias.any())


def as_layer(
    rotation: Rotation, shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Conv | Linear:
    """The rotation of a tensor (*shape) as a layer of its own."""
    channels = shape[0]
    eye = torch.eye(channels, dtype=dtype, device=device)
    weight, bias = rotation.of_rows(eye), torch.zeros_like(eye[0])
    if len(shape) == 1:
        return Linear(weight, bias)
    groups = channels // 2 if rotation.within(channels // 2) else 1
    if groups > 1:
        weight = weight.unflatten(1, (groups, 2))[
            torch.arange(channels), torch.arange(channels) // 2
        ]
    return Conv(weight[:, :, None, None].contiguous(), bias, tuple(shape), groups=groups)
