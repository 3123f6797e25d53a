"""Picking a seeded subset, and stacking images that come one at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.geometry import conform
from greg_cert.data.reject import data_error


def pick(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Positions of a random subset of at most `limit` out of `count`, ascending."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.default_rng(seed).choice(count, size=limit, replace=False)
    return np.sort(chosen).astype(np.int64)


def stack_images(
    images: Iterable[tuple[str, Tensor]], *, field: str, channels: int | None, size: int | None
) -> Tensor:
    """Images of any shape stacked to uint8 (N, channels, size, size).

    Args:
        images: Pairs of what errors call the image and its pixels, uint8 (1 or 3, H, W).
        field: Path of the field that the images came from.
        channels: 1 or 3; None takes 3 if any image is in colour.
        size: Height and width; None takes the images' own, which must then be the same for all.

    Raises:
        DataError: `size` is None and two images differ in size.
    """
    ready: list[Tensor] = []
    first: tuple[int, int] | None = None
    for title, image in images:
        height, width = image.shape[1:]
        first = first or (height, width)
        if size is None and (height, width) != first:
            raise data_error(
                field,
                f"images of one size, like the first of {first[0]}x{first[1]}",
                f"{title!r} of {height}x{width}",
                hint="Set data.image_size to have them all resized",
            )
        ready.append(
            conform(
                image[None],
                channels=channels or image.shape[0],
                size=size or min(height, width),
            )
        )
    wanted = max(image.shape[1] for image in ready)
    return torch.cat([conform(i, channels=wanted, size=i.shape[-1]) for i in ready])
