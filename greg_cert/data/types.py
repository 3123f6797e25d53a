"""What the data layer hands out: `Images`, sets of images, and `DataSplits`, all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from greg_cert.data.files.encoded import FileKeys
from greg_cert.data.reject import data_error

Indices = Tensor | Sequence[int] | slice


class Images(Protocol):
    """Images of one size, with labels where they are known, in memory or not.

    Sets in memory are `ImageSet`; the others read what they are asked for and keep none of it.
    """

    @property
    def name(self) -> str:
        """What tables and errors call the set."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64, or None."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Name of each class, or None where the source has no names."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""

    def __len__(self) -> int: ...

    def stored(self, indices: Indices | None = None) -> Tensor:
        """The images at `indices` (all when None) on the CPU: uint8, or float32 in [0, 1]."""

    def pixels(self, indices: Indices | None = None) -> Tensor:
        """The images at `indices` (all when None) as float32 in [0, 1], (B, C, H, W)."""

    def subset(self, indices: Indices) -> Self:
        """The set of the images and labels at `indices`, in that order."""

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, by which a changed set is known."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory, of one size; `Images` tells the rest.

    Attributes:
        images: (N, C, H, W); uint8 grey levels, or float32 in [0, 1].
        files: Of what files they were decoded, where they were.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    files: FileKeys | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or 0 in images.shape:
            shape = str(tuple(images.shape))
            raise data_error(self.name, "images of shape (N, C, H, W), none of them 0", shape)
        if images.dtype == torch.float32:
            low, high = (float(v) for v in torch.aminmax(images))
            if not (low >= 0.0 and high <= 1.0):  # NaN fails both
                raise data_error(self.name, "finite pixels in [0, 1]", f"[{low:g}, {high:g}]")
        elif images.dtype != torch.uint8:
            raise data_error(self.name, "uint8 or float32 images", str(images.dtype))
        if labels is not None and (labels.dtype, labels.shape) != (torch.int64, images.shape[:1]):
            wanted = f"int64 labels of shape ({len(images)},)"
            raise data_error(self.name, wanted, f"{labels.dtype} of shape {tuple(labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See `Images`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def stored(self, indices: Indices | None = None) -> Tensor:
        """See `Images`."""
        return self.images if indices is None else self.images[selector(indices)]

    def pixels(self, indices: Indices | None = None) -> Tensor:
        """See `Images`."""
        return unit_range(self.stored(indices))

    def subset(self, indices: Indices) -> ImageSet:
        """See `Images`."""
        chosen = selector(indices)
        labels = None if self.labels is None else self.labels[chosen]
        files = self.files
        if files is not None:
            files = files.taken(torch.arange(len(self))[chosen].numpy())
        return ImageSet(self.name, self.images[chosen], labels, self.classes, files)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the shape, dtype and bytes of the images and the labels."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels):
            if part is None:
                digest.update(b"none")
                continue
            digest.update(f"{tuple(part.shape)} {part.dtype} ".encode())
            digest.update(part.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DataSplits:
    """Everything one experiment reads, of one size and number of channels.

    Attributes:
        train: In-distribution images to learn from.
        calibration: In-distribution images that set the threshold; never tested on.
        test: In-distribution images to report on.
        aux: Auxiliary outliers for training, or None.
        ood: Out-of-distribution test sets by name.
        num_classes: Number of classes, each present in all three splits.
        image_size: Height and width in pixels.
        mean: Per-channel mean of the train split, or the configured one, in [0, 1] units.
        std: Per-channel standard deviation, as `mean`.
        indices: Positions of ``train``, ``calibration`` and ``test`` in the ID set as it was
            loaded (after `limit`); ``test`` counts in the ID test set where there is one.
    """

    train: Images
    calibration: Images
    test: Images
    aux: Images | None
    ood: dict[str, Images]
    num_classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    indices: dict[str, Tensor]

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each of ``train calibration test aux``, and of ``ood/NAME``."""
        named = {"train": self.train, "calibration": self.calibration, "test": self.test}
        if self.aux is not None:
            named["aux"] = self.aux
        named |= {f"ood/{name}": images for name, images in self.ood.items()}
        return {name: images.fingerprint() for name, images in named.items()}


def unit_range(stored: Tensor) -> Tensor:
    """Stored images as float32 in [0, 1]: uint8 divided by 255, floats as they are."""
    return stored.to(torch.float32) / 255 if stored.dtype == torch.uint8 else stored


def selector(indices: Indices) -> Tensor | slice:
    """Indices as what a CPU tensor can be indexed with."""
    if isinstance(indices, slice):
        return indices
    if isinstance(indices, Tensor):
        return indices.cpu()
    return torch.as_tensor(indices, dtype=torch.int64)
