"""Data that settings are chosen by: no test set in it can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.reject import data_error
from greg_cert.data.splits import pick
from greg_cert.data.types import Images, Indices
from greg_cert.errors import DataError

WITHHELD = "withheld"
"""In place of the fingerprint of a set that was not to be read."""


@dataclass(frozen=True)
class Withheld:
    """Stands for a test set where nothing may be chosen by it: whoever reads it is refused."""

    name: str
    classes: tuple[str, ...] | None
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return 0

    def _refuse(self) -> NoReturn:
        raise DataError(f"{self.name}: expected no use of test data here, but they were asked for")

    @property
    def labels(self) -> Tensor | None:
        """Refused."""
        self._refuse()

    def stored(self, indices: Indices | None = None) -> Tensor:
        """Refused."""
        self._refuse()

    def pixels(self, indices: Indices | None = None) -> Tensor:
        """Refused."""
        self._refuse()

    def subset(self, indices: Indices) -> Withheld:
        """Refused."""
        self._refuse()

    def fingerprint(self) -> str:
        """`WITHHELD`, which is no digest."""
        return WITHHELD


def hold_out(images: Images, share: float, *, most: int, seed: int) -> tuple[Images, Images]:
    """A set without a random share of it, in (0, 1), and that part, of at most `most` images.

    Raises:
        DataError: Either part would be empty.
    """
    count = min(round(share * len(images)), most)
    if not 0 < count < len(images):
        found = f"{count} of the {len(images)} of {images.name}"
        raise data_error("held-out", "a share that leaves images on both sides", found)
    aside = pick(len(images), count, seed)
    kept = np.setdiff1d(np.arange(len(images)), aside)
    return images.subset(torch.from_numpy(kept)), images.subset(torch.from_numpy(aside))
