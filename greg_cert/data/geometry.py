"""Images of any size and colour brought to one size and number of channels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Crop = float | Literal["image_size"]
"""The centred square that is kept of an image: of which share of its shorter side, or so large as
what images are brought to, which leaves its pixels as they are.
"""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CHUNK_VALUES = 1 << 24  # float32 values held at a time


def centre_side(height: int, width: int, crop: float = 1.0) -> int:
    """Side of the centred square that is kept: the share `crop` of the shorter side, rounded.

    224/256 = 0.875, resized to 224, is what ImageNet is tested with: the shorter side resized to
    256, and the centre 224×224 of that.
    """
    return max(1, math.floor(crop * min(height, width) + 0.5))


def centre_square(images: Tensor, side: int | None = None) -> Tensor:
    """A centred square of each image, (N, C, H, W) -> (N, C, side, side); the largest by default.

    The side is at most the image's.
    """
    height, width = images.shape[-2:]
    side = side or min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Floating-point images (N, 1 or 3, H, W) in 1 or 3 channels.

    RGB becomes grey by ITU-R 601 luma, grey RGB by repetition.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(_LUMA, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def conform(images: Tensor, *, channels: int, size: int, crop: Crop = 1.0) -> Tensor:
    """Images (N, 1 or 3, H, W) as (N, channels, size, size), uint8 or float32 in [0, 1] as before.

    A centred square as `crop` says is kept, so that shapes are not distorted; it is then resized
    bilinearly with antialiasing. uint8 images are computed in float32 and rounded once at the end.
    Images that already fit come back with their very pixels.
    """
    height, width = images.shape[-2:]
    side = size if crop == "image_size" else centre_side(height, width, crop)
    return resized(centre_square(images, side), channels=channels, size=size)


def resized(images: Tensor, *, channels: int, size: int) -> Tensor:
    """As `conform`, of whole images of any shape, which this distorts to a square."""
    if images.shape[1:] == (channels, size, size):
        return images.contiguous()
    result = torch.empty((len(images), channels, size, size), dtype=images.dtype)
    chunk = max(1, _CHUNK_VALUES // max(images[0].numel(), result[0].numel()))
    for start in range(0, len(images), chunk):
        part = to_channels(images[start : start + chunk].to(torch.float32), channels)
        if part.shape[-2:] != (size, size):
            part = interpolate(
                part, size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
        whole = images.dtype == torch.uint8
        result[start : start + chunk] = part.round().clamp(0, 255) if whole else part.clamp(0, 1)
    return result
