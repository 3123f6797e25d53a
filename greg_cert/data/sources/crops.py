"""Random crops of pictures, of all scales, each averaged down to one size.

A crop of side s becomes k×k pixels, each the exact mean over its (s/k)×(s/k) box. The means come
from a summed-area table, whose bilinear interpolation is exact for pictures made of pixels, so the
cost does not depend on s, and a crop of side k is the picture's own window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from greg_cert.data.geometry import to_channels

_CHUNK_VALUES = 1 << 23
_ROUNDS = 50
_MIN_CONTRAST = 0.02  # least deviation over a crop's pixels, in [0, 1], in its most varied channel


def area_crops(picture: Tensor, top: Tensor, left: Tensor, side: Tensor, size: int) -> Tensor:
    """Square windows of one picture, averaged over boxes to size×size: (B, C, size, size) float64.

    The picture is (C, H, W), of any numeric dtype; its windows lie inside it, with their first row
    and column at (B,) `top` and `left`, and of (B,) `side` rows and columns.
    """
    channels, height, width = picture.shape
    sums = pad(picture.to(torch.float64).cumsum(1).cumsum(2), (1, 0, 1, 0))  # (C, H+1, W+1)
    steps = torch.arange(size + 1)

    def edges(start: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Box edges as a whole index (B, size+1), below `limit`, and the fraction beyond it."""
        scaled = steps * side[:, None]  # in units of 1/size pixel, so whole edges stay exact
        whole = (start[:, None] + scaled // size).clamp(max=limit - 1)
        return whole, start[:, None] + scaled.to(torch.float64) / size - whole

    row, row_part = edges(top, height)
    column, column_part = edges(left, width)
    flat = sums.reshape(channels, -1)

    def table(down: int, right: int) -> Tensor:
        where = (row + down)[:, :, None] * (width + 1) + (column + right)[:, None, :]
        return flat[:, where]  # (C, B, size+1, size+1)

    across = column_part[:, None, :]
    upper = table(0, 0) * (1 - across) + table(0, 1) * across
    lower = table(1, 0) * (1 - across) + table(1, 1) * across
    at_edges = upper * (1 - row_part[:, :, None]) + lower * row_part[:, :, None]
    boxes = at_edges.diff(dim=2).diff(dim=3)  # (C, B, size, size)
    area = (side.to(torch.float64) / size).square()
    return (boxes / area[None, :, None, None]).transpose(0, 1)


def random_crops(
    pictures: Sequence[Tensor], *, n: int, size: int, channels: int, seed: int
) -> Tensor:
    """Random square crops, uint8 (n, channels, size, size).

    Each crop comes from a picture chosen uniformly, has a side drawn log-uniformly from `size` (or
    the picture's short side, if that is less) to the short side, lies anywhere, and is flipped in
    each direction with probability one half. Nearly constant crops are drawn anew. Pictures are
    uint8 (1 or 3, H, W) each.

    Raises:
        ValueError: The pictures are so flat that n crops could not be found.
    """
    generator = torch.Generator().manual_seed(seed)
    ready = [to_channels(p[None].to(torch.float64), channels)[0] for p in pictures]
    kept: list[Tensor] = []
    found = 0
    for _ in range(_ROUNDS):
        batch = _draw(ready, n - found + (n - found) // 4 + 16, size, generator)
        contrast = batch.to(torch.float32).flatten(2).std(dim=2).amax(dim=1)  # (B,)
        batch = batch[contrast >= 255 * _MIN_CONTRAST][: n - found]
        kept.append(batch)
        found += len(batch)
        if found == n:
            return torch.cat(kept)
    raise ValueError(f"found only {found} of {n} crops with a contrast of {_MIN_CONTRAST:g}")


def _draw(pictures: Sequence[Tensor], count: int, size: int, generator: torch.Generator) -> Tensor:
    which = torch.randint(len(pictures), (count,), generator=generator)
    scale, down, across, flip_y, flip_x = torch.rand(
        (5, count), generator=generator, dtype=torch.float64
    )
    channels = pictures[0].shape[0]
    crops = torch.empty((count, channels, size, size), dtype=torch.uint8)
    chunk = max(1, _CHUNK_VALUES // (channels * (size + 1) ** 2))
    for index, picture in enumerate(pictures):
        height, width = picture.shape[1:]
        most = min(height, width)
        least = min(size, most)
        for rows in torch.split((which == index).nonzero()[:, 0], chunk):
            side = (least * torch.exp(scale[rows] * math.log(most / least))).round().long()
            top = (down[rows] * (height - side + 1)).long()
            left = (across[rows] * (width - side + 1)).long()
            crops[rows] = area_crops(picture, top, left, side, size).round().to(torch.uint8)
    crops = torch.where((flip_y < 0.5)[:, None, None, None], crops.flip(2), crops)
    return torch.where((flip_x < 0.5)[:, None, None, None], crops.flip(3), crops)
