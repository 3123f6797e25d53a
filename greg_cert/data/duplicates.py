"""Images that two sets have in common, pixel for pixel."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from greg_cert.data.reject import data_error
from greg_cert.data.types import ImageSet


def shared_images(images: Tensor, others: Tensor) -> Tensor:
    """Which of the images also occur among the others: (N,) bool.

    Images are compared in 256 grey levels. Constant images, which occur by chance, never count.

    Args:
        images: (N, C, H, W), uint8 or float32 in [0, 1].
        others: (M, C, H, W), uint8 or float32 in [0, 1].
    """
    known = set(_keys(others)) - {None}
    return torch.tensor([key in known for key in _keys(images)], dtype=torch.bool)


def without_shared(
    training: ImageSet, test: ImageSet, *, fields: tuple[str, str], policy: str
) -> Tensor:
    """Positions of the training images that are not in the test set: all, or an error, or fewer.

    Args:
        training: Set whose images may be dropped.
        test: Set that training must not know.
        fields: Paths of the fields that hold the two sets.
        policy: "refuse" raises if any image is shared, "drop" leaves the shared ones out.

    Raises:
        DataError: Images are shared and may not be dropped, or dropping them would leave none.
    """
    shared = shared_images(training.images, test.images)
    count = int(shared.sum())
    if count and (policy == "refuse" or count == len(training)):
        raise data_error(
            fields[0],
            f"no image that is also in {fields[1]}",
            f"{count} of {len(training)} of {training.name!r} also in {test.name!r}",
            hint="Set data.shared to drop to leave them out" if policy == "refuse" else "",
        )
    return (~shared).nonzero()[:, 0]


def _keys(images: Tensor) -> list[bytes | None]:
    """A digest an image, or None for a constant one."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    flat = images.flatten(2)  # (N, C, H*W)
    varied = (flat.amax(dim=2) > flat.amin(dim=2)).any(dim=1).tolist()
    rows = images.flatten(1).contiguous().numpy()
    return [
        hashlib.blake2b(row.data, digest_size=16).digest() if ok else None
        for row, ok in zip(rows, varied, strict=True)
    ]
