"""Sets that lie inside the installed packages, so that they are there without a download."""

from __future__ import annotations

import numpy as np
import torch

from greg_cert.data.reject import data_error
from greg_cert.data.sources.crops import random_crops
from greg_cert.data.sources.pictures import GROUPS, bundled_file, read_pictures
from greg_cert.data.types import ImageSet

_FACES = 100  # of lfw_subset's 200 patches, the first 100 are faces and the others are not


def load_digits_set(name: str) -> ImageSet:
    """scikit-learn's 1,797 digits as float32 (N, 1, 8, 8) in sixteenths, with labels 0..9."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    return ImageSet(name, pixels, targets, tuple(str(digit) for digit in range(10)))


def load_faces(name: str, *, field: str) -> ImageSet:
    """The 100 faces of scikit-image's `lfw_subset`, float32 (100, 1, 25, 25)."""
    path = bundled_file(GROUPS["faces"][0], field=field)
    patches = np.load(path, allow_pickle=False)[:_FACES]
    return ImageSet(name, torch.from_numpy(patches.astype(np.float32))[:, None])


def load_crops(
    group: str, name: str, *, field: str, n: int, channels: int, size: int, seed: int
) -> ImageSet:
    """Random crops of a group of bundled pictures, uint8 (n, channels, size, size)."""
    pictures = read_pictures(group, field=field)
    try:
        crops = random_crops(pictures, n=n, size=size, channels=channels, seed=seed)
    except ValueError as error:
        raise data_error(f"{field}.n", "that many varied crops to exist", n) from error
    return ImageSet(name, crops)
