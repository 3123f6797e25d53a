"""Reproducible batches: every draw follows from (seed, stage, epoch), never from global state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.data import ImageSet


def generator_for(device: torch.device, *key: int) -> torch.Generator:
    """A generator on `device` that depends on the whole key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


def batch_indices(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Each of `count` samples once, shuffled, in batches of `size`; a partial last one is left out.

    A set smaller than one batch gives one batch of all.
    """
    order = torch.randperm(count, generator=generator)
    for start in range(0, max(count - size, 0) + 1, size):
        yield order[start : start + size]


class Draw:
    """Takes samples from a pool without repeating any before all have had their turn."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count, self._generator = count, generator
        self._left = torch.empty(0, dtype=torch.long)

    def take(self, size: int) -> Tensor:
        """The next `size` indices."""
        while len(self._left) < size:
            again = torch.randperm(self._count, generator=self._generator)
            self._left = torch.cat([self._left, again])
        taken, self._left = self._left[:size], self._left[size:]
        return taken


class DeviceImages:
    """A whole image set on the training device, decoded and augmented there."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self._images = images.images.to(device)
        self.labels = None if images.labels is None else images.labels.to(device)

    def __len__(self) -> int:
        return len(self._images)

    def pixels(self, indices: Tensor) -> Tensor:
        """Images (B, C, H, W), float32 in [0, 1]."""
        chosen = self._images[indices.to(self._images.device)]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen


def shifted(
    images: Tensor, generator: torch.Generator, *, flip: bool, share: float = 1.0
) -> Tensor:
    """A `share` of images (B, C, H, W) shifted by up to an eighth over zeros, and mirrored or not.

    For 32×32 images that is the usual padding by 4 pixels and random cropping.
    """
    pad = max(1, images.shape[-1] // 8)
    batch, _, height, width = images.shape
    device = images.device
    shift = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator, device=device)
    coins = torch.rand(2, batch, generator=generator, device=device)
    chosen = coins[0] < share
    shift = torch.where(chosen, shift, pad)
    mirrored = chosen & (coins[1] < 0.5) & flip
    rows = shift[0].unsqueeze(1) + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(batch, -1)
    columns = torch.where(mirrored.unsqueeze(1), width - 1 - columns, columns)
    columns = shift[1].unsqueeze(1) + columns
    padded = F.pad(images, (pad, pad, pad, pad))
    place = torch.arange(batch, device=device).reshape(-1, 1, 1)
    # Advanced indices around a slice put the channels last.
    return padded[place, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
