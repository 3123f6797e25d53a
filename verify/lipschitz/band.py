"""Gram matrices of convolutions as what they are: bands. What is far apart shares no window.

With coordinates in the order (row, column, channel), the Gram matrix of a convolution has
bandwidth b, a few rows of the image, and its Cholesky factorisation costs n·b² instead of n³.
The matrix itself comes from far fewer probes than it has columns: unit vectors so far apart that
their images do not meet are sent through the layer together.

Source of the probes: Curtis, Powell, Reid, "On the estimation of sparse Jacobian matrices",
IMA Journal of Applied Mathematics 13, 1974.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.linalg import lapack
from torch import Tensor

from greg_cert.verify.graph import Conv

LARGEST_BAND = 2**25  # elements that are stored, 256 MiB
LARGEST_WORK = 4e10  # multiplications of a factorisation, one or two seconds

_CHUNK = 2**24  # elements of probes at a time


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
    def apart(self) -> tuple[int, int]:
        """From how far on two unit vectors have images that do not meet; the whole image if not."""
        rows, columns = (min(2 * r + 1, n) for r, n in zip(self.reach, self.shape[1:], strict=True))
        return rows, columns

    @property
    def probes(self) -> int:
        """Images that are sent through the layer for the whole matrix."""
        return math.prod(self.apart) * self.shape[0]

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
    as many products as a window has, up to twice.

    Args:
        op: the layer.
        band: of it.
        rows: (*output_shape).
        columns: (*input_shape).
    """
    channels, height, width = band.shape
    reach, apart = band.reach, band.apart
    images = _images(op, band, rows, columns)
    # Beyond the image there is nothing.
    images = F.pad(images, (reach[1], reach[1], 0, reach[0]))
    images = images.reshape(*apart, channels, channels, *images.shape[2:])
    h = torch.arange(height, device=rows.device).unsqueeze(1)
    w = torch.arange(width, device=rows.device).unsqueeze(0)
    channel = torch.arange(channels, device=rows.device)
    found = rows.new_zeros(height * width, channels, band.width + 1)
    for down in range(reach[0] + 1):
        for across in range(-reach[1] if down else 0, reach[1] + 1):
            # (H, W, C, C): of a coordinate, and the one that lies (down, across) from it.
            block = images[h % apart[0], w % apart[1], :, :, h + down, w + across + reach[1]]
            start = (down * width + across) * channels
            own, other = channel.unsqueeze(1), channel.unsqueeze(0)
            away = start + other - own
            if start == 0:
                own, other = torch.tril_indices(channels, channels, device=rows.device).flip(0)
                block, away = block[:, :, own, other], other - own
            elif start < channels:  # a narrow image: what lies left of the first column is nothing
                away = away.clamp_min(0)
                block = torch.where(start + other - own >= 0, block, 0.0)
            block = block.flatten(0, 1)
            own = own.expand(away.shape)
            inside = away <= band.width
            found[:, own[inside], away[inside]] += block[:, inside]
    found = found.flatten(0, 1)
    side = (columns if band.by_inputs else rows).permute(1, 2, 0).flatten()
    ahead = F.pad(side, (0, band.width)).unfold(0, band.width + 1, 1)
    return (found * side.unsqueeze(1) * ahead).cpu()


def _images(op: Conv, band: Band, rows: Tensor, columns: Tensor) -> Tensor:
    """What the middle of the Gram matrix makes of the probes, (probes·C, C, H, W)."""
    channels, height, width = band.shape
    apart, count = band.apart, band.probes
    other = op.output_shape if band.by_inputs else op.input_shape
    chunk = max(1, _CHUNK // max(band.size, math.prod(other)))
    found = []
    for chosen in torch.arange(count, device=rows.device).split(chunk):
        channel = chosen % channels
        down, across = chosen // channels // apart[1], chosen // channels % apart[1]
        h, w = (torch.arange(n, device=rows.device) for n in (height, width))
        at = ((h % apart[0]) == down.unsqueeze(1)).unsqueeze(2)
        at = at & ((w % apart[1]) == across.unsqueeze(1)).unsqueeze(1)
        probe = rows.new_zeros(len(chosen), channels, height, width)
        probe[torch.arange(len(chosen), device=rows.device), channel] = at.to(rows.dtype)
        if band.by_inputs:
            found.append(op.adjoint(rows**2 * op.apply(probe, op.weight), op.weight))
        else:
            found.append(op.apply(columns**2 * op.adjoint(probe, op.weight), op.weight))
    return torch.cat(found)


def level_above(gram: Tensor, estimate: float, margins: Sequence[float]) -> float:
    """The first estimate·(1 + margin) that is proven above a band (n, b + 1), else inf.

    Above all its eigenvalues but for what the factorisation rounds off, for which callers allow.
    """
    levels = (estimate * (1 + margin) for margin in margins)
    return next((level for level in levels if is_positive(gram, level)), math.inf)


def is_positive(gram: Tensor, level: float) -> bool:
    """Whether the Cholesky factorisation of level·I less a band (n, b + 1) runs to its end."""
    shifted = gram.neg()
    shifted[:, 0] += level
    factor, info = lapack.dpbtrf(shifted.numpy().T, lower=1, overwrite_ab=1)
    return info == 0 and bool(torch.from_numpy(factor[0]).isfinite().all())
