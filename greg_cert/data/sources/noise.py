"""Noise images, in the 256 grey levels that real images have."""

from __future__ import annotations

import torch
from torch import Tensor

GAUSSIAN_MEAN = 0.5
GAUSSIAN_STD = 0.25


def uniform_noise(n: int, *, channels: int, size: int, seed: int) -> Tensor:
    """Every value uniform over 0..255, uint8 (n, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, channels, size, size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def gaussian_noise(n: int, *, channels: int, size: int, seed: int) -> Tensor:
    """Every value normal (mean 0.5, deviation 0.25 in [0, 1] units), clipped, in uint8."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((n, channels, size, size), generator=generator)
    return (255 * (GAUSSIAN_MEAN + GAUSSIAN_STD * noise)).round().clamp(0, 255).to(torch.uint8)
