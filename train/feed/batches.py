"""Reproducible batches: every draw follows from (seed, stage, epoch), never from global state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.data.files.on_disk import FileImages
from greg_cert.data.types import Images, ImageSet
from greg_cert.train.feed.crops import ResizedCrops


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
    """An image set as the training device sees it: resident there, or read on demand.

    Sets in memory move to the device whole, as uint8 where they are; the others are read at each
    call.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self._set, self._device = images, device
        self._resident = images.images.to(device) if isinstance(images, ImageSet) else None
        self.labels = None if images.labels is None else images.labels.to(device)

    def __len__(self) -> int:
        return len(self._set)

    @property
    def resident(self) -> bool:
        """Whether the images are on the device already."""
        return self._resident is not None

    @property
    def width(self) -> int:
        """Pixels across each image."""
        return self._set.image_shape[2]

    def read(self, indices: Tensor, moves: Shifts | ResizedCrops | None = None) -> Tensor | None:
        """The images as stored, on the CPU, for `pixels` later; None where they are resident.

        Of image files on disk, crops are taken here, of the whole pictures.
        """
        if self.resident:
            return None
        if isinstance(self._set, FileImages) and isinstance(moves, ResizedCrops):
            return self._set.stored(indices, moves.box)
        return self._set.stored(indices)

    def pixels(
        self,
        indices: Tensor,
        stored: Tensor | None = None,
        moves: Shifts | ResizedCrops | None = None,
    ) -> Tensor:
        """Images (B, C, H, W), float32 in [0, 1], each moved in its own way.

        They are made of what was `stored` where it was read before.
        """
        if self._resident is not None:
            chosen = self._resident[indices.to(self._device)]
        else:
            stored = self.read(indices.cpu(), moves) if stored is None else stored
            assert stored is not None
            chosen = stored.to(self._device, non_blocking=True)
        images = chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen
        if isinstance(self._set, FileImages) and isinstance(moves, ResizedCrops):
            return moves.mirror(images)
        return images if moves is None else moves.apply(images)


@dataclass(frozen=True)
class Shifts:
    """How each of B images is moved: by whole pixels over zeros, and mirrored or not."""

    pad: int  # the furthest an image moves; for 32×32 images 4, as is usual
    offsets: Tensor  # (2, B) rows and columns, in [0, 2·pad]; `pad` leaves an image in place
    mirrored: Tensor  # (B,) bool

    def of(self, chosen: Tensor | slice) -> Shifts:
        """Those of some of the images."""
        return Shifts(self.pad, self.offsets[:, chosen], self.mirrored[chosen])

    def apply(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W), each moved in its own way."""
        _, _, height, width = images.shape
        device = images.device
        rows = self.offsets[0].unsqueeze(1) + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(len(images), -1)
        columns = torch.where(self.mirrored.unsqueeze(1), width - 1 - columns, columns)
        columns = self.offsets[1].unsqueeze(1) + columns
        padded = F.pad(images, (self.pad,) * 4)
        place = torch.arange(len(images), device=device).reshape(-1, 1, 1)
        # Advanced indices around a slice put the channels last.
        return padded[place, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def draw_shifts(
    count: int, width: int, generator: torch.Generator, *, flip: bool, share: float = 1.0
) -> Shifts:
    """Shifts by up to an eighth of the width for a `share` of `count` images, the others none."""
    pad = max(1, width // 8)
    device = generator.device
    offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator, device=device)
    coins = torch.rand(2, count, generator=generator, device=device)
    chosen = coins[0] < share
    return Shifts(pad, torch.where(chosen, offsets, pad), chosen & (coins[1] < 0.5) & flip)
