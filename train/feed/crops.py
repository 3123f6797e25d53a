"""Parts of images of random size and shape, resized to one size: ImageNet's usual augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TRIES = 10  # to find a part that lies inside the image
_AREA = 0.08, 1.0  # of the image
_SHAPE = 3 / 4, 4 / 3  # width by height
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class ResizedCrops:
    """What is taken of each of B images, and whether it is mirrored; all on the CPU.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6; numbers of
    torchvision's RandomResizedCrop.
    """

    chosen: Tensor  # (B,) bool; the others stay whole
    mirrored: Tensor  # (B,) bool
    parts: Tensor  # (B, tries, 2) area, as a share of the image, and width by height
    place: Tensor  # (B, 2) in [0, 1): of the rows and columns where it may begin

    def of(self, some: Tensor | slice) -> ResizedCrops:
        """Those of some of the images."""
        some = some.cpu() if isinstance(some, Tensor) else some
        return ResizedCrops(
            self.chosen[some], self.mirrored[some], self.parts[some], self.place[some]
        )

    def box(self, index: int, height: int, width: int) -> Box | None:
        """What is taken of the image `index`, of this size; None where it stays whole."""
        if not self.chosen[index]:
            return None
        for area, shape in self.parts[index].tolist():
            h = round(math.sqrt(height * width * area / shape))
            w = round(math.sqrt(height * width * area * shape))
            if 0 < h <= height and 0 < w <= width:
                y, x = self.place[index].tolist()
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        # The largest part in the middle that is not too long.
        h, w = min(height, round(width / _SHAPE[0])), min(width, round(height * _SHAPE[1]))
        return (height - h) // 2, (width - w) // 2, h, w

    def apply(self, images: Tensor) -> Tensor:
        """Their parts in the size of the images (B, C, H, W), antialiased, and mirrored."""
        height, width = images.shape[2:]
        boxes = [self.box(i, height, width) or (0, 0, height, width) for i in range(len(images))]
        top, left, h, w = torch.tensor(boxes, device=images.device).T
        rows = _resizing(top, h, height).unsqueeze(1)
        columns = _resizing(left, w, width).unsqueeze(1)
        return self.mirror(rows @ images @ columns.mT)

    def mirror(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W), some of them mirrored."""
        mirrored = self.mirrored.to(images.device).reshape(-1, 1, 1, 1)
        return torch.where(mirrored, images.flip(3), images)


def _resizing(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Matrices (B, size, size) that resize `length` of `size` pixels from `start` on to `size`.

    Bilinear and antialiased: weights fall linearly to 0 at the distance of one pixel, of the
    smaller or the larger grid, whichever is wider.
    """
    pixel = torch.arange(size, device=start.device) + 0.5
    scale = (length / size).reshape(-1, 1, 1)
    source = pixel - start.reshape(-1, 1, 1)  # (B, 1, size) places of the pixels in the part
    distance = (source - scale * pixel.reshape(1, -1, 1)).abs()
    inside = (source > 0) & (source < length.reshape(-1, 1, 1))
    weights = (1 - distance / scale.clamp_min(1)).clamp_min(0) * inside
    return weights / weights.sum(2, keepdim=True)


def draw_crops(count: int, generator: torch.Generator, *, share: float = 1.0) -> ResizedCrops:
    """Crops of a `share` of `count` images, half of which are mirrored; the others stay whole."""
    coins = torch.rand(2, count, generator=generator)
    chosen = coins[0] < share
    low, high = (math.log(shape) for shape in _SHAPE)
    draws = torch.rand(count, _TRIES, 2, generator=generator)
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * draws[..., 0]
    shape = (low + (high - low) * draws[..., 1]).exp()
    return ResizedCrops(
        chosen,
        chosen & (coins[1] < 0.5),
        torch.stack([area, shape], 2),
        torch.rand(count, 2, generator=generator),
    )
