"""Labels that are what training needs: whole numbers 0..K-1, one an image, no class missing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.reject import data_error


def check_labels(labels: NDArray[np.generic], count: int, *, field: str) -> Tensor:
    """The labels as int64 (count,), once they are known to be sound.

    Args:
        labels: As read from the source.
        count: Number of images that they belong to.
        field: Path of the field that the labels came from.

    Raises:
        DataError: They are not integers, not one an image, negative, of a single class, or leave
            out a class between 0 and the largest.
    """
    if labels.shape != (count,) or count == 0:
        raise data_error(field, f"one label an image, shape ({count},)", str(labels.shape))
    if labels.dtype.kind not in "iu":
        raise data_error(field, "whole-number labels", f"dtype {labels.dtype}")
    if labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise data_error(field, "labels from 0 up", f"a label {int(labels.min())}")
    present = np.unique(labels)
    if len(present) < 2:
        raise data_error(field, "at least two classes", f"only the label {int(present[0])}")
    if int(present[-1]) != len(present) - 1:
        positions = np.arange(len(present))
        gap = int(positions[present.astype(np.int64) != positions][0])
        raise data_error(
            field,
            "labels 0..K-1 without a gap",
            f"{len(present)} classes up to {int(present[-1])} and none labelled {gap}",
        )
    return torch.from_numpy(labels.astype(np.int64))


def limited_labels(labels: Tensor, chosen: NDArray[np.int64], *, field: str) -> Tensor:
    """The labels at the chosen positions, once it is known that they lose no class.

    Args:
        labels: (N,), classes 0..K-1, all present.
        chosen: Positions that `limit` left.
        field: Path of the source whose `limit` it is.

    Raises:
        DataError: Some class has no image left.
    """
    kept = labels[torch.from_numpy(chosen)]
    wanted, found = int(labels.max()) + 1, len(torch.unique(kept))
    if found < wanted:
        lost = f"{len(kept)}, which keeps only {found}"
        raise data_error(f"{field}.limit", f"a limit that keeps all {wanted} classes", lost)
    return kept
