"""Labels that are what training needs: whole numbers 0..K-1, one an image, no class missing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.reject import data_error


def sound_labels(
    labels: NDArray[np.generic], count: int, chosen: NDArray[np.int64], *, place: str, field: str
) -> Tensor:
    """The labels of `count` images at the positions that `limit` chose, int64, if all are sound.

    `place` is the path of the field that they came from, `field` that of the source.

    Raises:
        DataError: They are not integers, not one an image, negative, of a single class, leave out a
            class between 0 and the largest, or some class has no image left.
    """
    if labels.shape != (count,) or count == 0:
        raise data_error(place, f"one label an image, shape ({count},)", str(labels.shape))
    if labels.dtype.kind not in "iu":
        raise data_error(place, "whole-number labels", f"dtype {labels.dtype}")
    if labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise data_error(place, "labels from 0 up", f"a label {int(labels.min())}")
    present = np.unique(labels)
    if len(present) < 2:
        raise data_error(place, "at least two classes", f"only the label {int(present[0])}")
    if int(present[-1]) != len(present) - 1:
        gap = int(np.argmax(present.astype(np.int64) != np.arange(len(present))))
        found = f"{len(present)} classes up to {int(present[-1])} and none labelled {gap}"
        raise data_error(place, "labels 0..K-1 without a gap", found)
    kept = labels[chosen].astype(np.int64)
    if (left := len(np.unique(kept))) < len(present):
        expected = f"a limit that keeps all {len(present)} classes"
        raise data_error(f"{field}.limit", expected, f"{len(kept)}, which keeps only {left}")
    return torch.from_numpy(kept)
