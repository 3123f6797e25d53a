"""What the data layer hands out: `ImageSet`, one set of images, and `DataSplits`, all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.data.reject import data_error

Indices = Tensor | Sequence[int] | slice


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size, with labels where they are known.

    Attributes:
        name: What tables and errors call the set.
        images: (N, C, H, W); uint8 grey levels, or float32 in [0, 1].
        labels: (N,) int64, or None.
        classes: Name of each class, or None where the source has no names.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

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

    def pixels(self, indices: Indices | None = None) -> Tensor:
        """The images at `indices` (all when None) as float32 in [0, 1], (B, C, H, W)."""
        chosen = self.images if indices is None else self.images[_selector(indices)]
        return chosen.to(torch.float32) / 255 if chosen.dtype == torch.uint8 else chosen

    def subset(self, indices: Indices) -> ImageSet:
        """The set of the images and labels at `indices`, in that order."""
        chosen = _selector(indices)
        labels = None if self.labels is None else self.labels[chosen]
        return ImageSet(self.name, self.images[chosen], labels, self.classes)

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
        channels: 1 or 3.
        image_size: Height and width in pixels.
        mean: Per-channel mean of the train split, in [0, 1] units.
        std: Per-channel standard deviation of the train split, in [0, 1] units.
        indices: Positions of ``train``, ``calibration`` and ``test`` in the ID set as it was
            loaded (after `limit`); ``test`` counts in the ID test set where there is one.
    """

    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    aux: ImageSet | None
    ood: dict[str, ImageSet]
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


def _selector(indices: Indices) -> Tensor | slice:
    if isinstance(indices, Tensor | slice):
        return indices
    return torch.as_tensor(indices, dtype=torch.int64)
