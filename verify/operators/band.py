"""Gram matrices of convolutions as what they are: bands. What is far apart shares no window.

With coordinates in the order (row, column, channel), the Gram matrix of a convolution has
bandwidth b, a few rows of the image, and its Cholesky factorisation costs n·b² instead of n³.
Two taps of the kernel make one block of it for every window: a product of two matrices of channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

from greg_cert.verify.graph.ops import Conv

LARGEST_BAND = 2**25  # elements that are stored, 256 MiB
LARGEST_WORK = 4e10  # multiplications of a factorisation, one or two seconds


@dataclass(frozen=True)
class Band:
    """Which Gram matrix of a convolution has the cheaper band, and its shape.

    Attributes:
        by_inputs: WᵀW, of the inputs, not WWᵀ, of the outputs.
        shape: (C, H, W) of the coordinates.
        reach: rows and columns of the image over which two coordinates share a window.
    """

    by_inputs: bool
    shape: tuple[int, ...]
    reach: tuple[int, int]

    @classmethod
    def of(cls, op: Conv) -> Band:
        """The cheaper of the two."""
        return min(cls.both(op), key=lambda band: band.work)

    @classmethod
    def both(cls, op: Conv) -> list[Band]:
        """That of the inputs and that of the outputs."""
        spans = [d * (k - 1) for k, d in zip(op.weight.shape[2:], op.dilation, strict=True)]
        found = []
        for by_inputs, shape in ((True, op.input_shape), (False, op.output_shape)):
            strides = (1, 1) if by_inputs else op.stride
            reach = [
                min(span // step, size - 1)
                for span, step, size in zip(spans, strides, shape[1:], strict=True)
            ]
            found.append(cls(by_inputs, shape, (reach[0], reach[1])))
        return found

    @property
    def size(self) -> int:
        """Coordinates n."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Diagonals below the main one that may hold anything, b."""
        channels, _, columns = self.shape
        rows, across = self.reach
        return min((rows * columns + across + 1) * channels - 1, self.size - 1)

    @property
    def work(self) -> float:
        """Multiplications of a factorisation, about."""
        return float(self.size) * (self.width + 1) ** 2

    @property
    def fits(self) -> bool:
        """Whether it is stored and factorised at all."""
        return self.size * (self.width + 1) <= LARGEST_BAND and self.work <= LARGEST_WORK


def gram_band(op: Conv, band: Band, rows: Tensor, columns: Tensor) -> Tensor:
    """The lower half (n, b + 1) of the Gram matrix of diag(rows)·W·diag(columns), on the CPU.

    Entry (j, d) is that of coordinates j + d and j, in the order (row, column, channel). Each sums
    no more products than the larger of a window and what one input reaches has. Rows are
    (*output_shape), columns (*input_shape).
    """
    channels, height, width = band.shape
    weight = op.weight.unflatten(0, (op.groups, -1))  # (G, O, C, kernel)
    if not band.by_inputs:
        weight = weight.transpose(1, 2)
    between = rows if band.by_inputs else columns  # what both taps meet in
    between = (between**2).unflatten(0, (op.groups, -1)).permute(0, 2, 3, 1)
    # Entry (own, d) of a band lies beside (own + 1, d − 1): with one diagonal more than channels, a
    # block of all pairs of channels is a grid in memory.
    each, diagonals = channels // op.groups, max(band.width, channels) + 1
    found = rows.new_zeros(band.size, diagonals)
    size = (op.groups, height, width, each, each)
    pixel = channels * diagonals
    strides = (each * diagonals, width * pixel, pixel, diagonals - 1, 1)
    channel = torch.arange(each, device=rows.device)
    lower = channel >= channel.unsqueeze(1)  # (own, other)
    taps = list(product(*(range(k) for k in weight.shape[3:])))
    for first, second in product(taps, taps):
        down, across = (_meeting(op, band, a, first[a], second[a]) for a in (0, 1))
        if down is None or across is None or (down.apart, across.apart) < (0, 0):
            continue
        own, other = (weight[..., i, j] for i, j in (first, second))  # (G, between, each)
        part = between[:, down.between, across.between].unsqueeze(3)
        block = (part * own.mT[:, None, None]).flatten(1, 3) @ other
        block = block.reshape(op.groups, *part.shape[1:3], each, each)
        start = (down.apart * width + across.apart) * channels
        if start == 0:
            block = torch.where(lower, block, 0.0)
        found.as_strided(size, strides, start)[:, down.own, across.own] += block
    side = (columns if band.by_inputs else rows).permute(1, 2, 0).flatten()
    found = found[:, : band.width + 1]
    found *= side.unsqueeze(1)
    found *= F.pad(side, (0, band.width)).unfold(0, band.width + 1, 1)
    return found.cpu()


@dataclass(frozen=True)
class _Meeting:
    """On one axis, where two coordinates meet in a window (or a pixel) by a tap of each.

    Attributes:
        between: the windows.
        own: the first coordinates.
        apart: from there to the second ones.
    """

    between: slice
    own: slice
    apart: int


def _meeting(op: Conv, band: Band, axis: int, first: int, second: int) -> _Meeting | None:
    stride, padding, dilation = op.stride[axis], op.padding[axis], op.dilation[axis]
    inputs, outputs = op.input_shape[axis + 1], op.output_shape[axis + 1]
    # Output q reads input stride·q + tap by the first tap.
    tap, apart = dilation * first - padding, dilation * (second - first)
    low, high = -(tap // stride), (inputs - 1 - tap) // stride + 1
    low, high = max(0, low), min(outputs, high)
    if band.by_inputs:
        low = max(low, -((tap + apart) // stride))
        high = min(high, (inputs - 1 - tap - apart) // stride + 1)
    else:
        apart, rest = divmod(-apart, stride)
        if rest:
            return None
        low, high = max(low, -apart), min(high, outputs - apart)
    if low >= high:
        return None
    read = slice(stride * low + tap, stride * (high - 1) + tap + 1, stride)
    made = slice(low, high)
    return _Meeting(made, read, apart) if band.by_inputs else _Meeting(read, made, apart)


def level_above(gram: Tensor, estimate: float, margins: Sequence[float]) -> float:
    """The first estimate·(1 + margin) that is proven above a band (n, b + 1), else inf.

    Above all its eigenvalues but for what the factorisation rounds off, for which callers allow.
    """
    levels = (estimate * (1 + margin) for margin in margins)
    return next((level for level in levels if is_positive(gram, level)), math.inf)


@cache
def _blas() -> ThreadpoolController:
    """Of SciPy's BLAS, whose threads would otherwise wait for one another beside torch's."""
    return ThreadpoolController()


def is_positive(gram: Tensor, level: float) -> bool:
    """Whether the Cholesky factorisation of level·I less a band (n, b + 1) runs to its end."""
    shifted = gram.neg()
    shifted[:, 0] += level
    with _blas().limit(limits=torch.get_num_threads(), user_api="blas"):
        factor, info = lapack.dpbtrf(shifted.numpy().T, lower=1, overwrite_ab=1)
    return info == 0 and bool(torch.from_numpy(factor[0]).isfinite().all())
