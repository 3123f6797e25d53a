"""Handwritten digits, inside scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from greg_cert.data.sources.base import DataSource, Request

if TYPE_CHECKING:
    from greg_cert.data.types import Images


class DigitsSource(DataSource):
    """scikit-learn's 1,797 handwritten digits, 8×8, 16 grey levels, ten classes."""

    labelled: ClassVar[bool] = True

    source: Literal["digits"] = "digits"

    def load(self, request: Request) -> Images:
        """float32 (1797, 1, 8, 8) in sixteenths, with labels 0..9."""
        import numpy as np
        import torch
        from sklearn.datasets import load_digits

        from greg_cert.data.types import ImageSet

        images, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
        targets = torch.from_numpy(labels.astype(np.int64))
        return ImageSet(self.title, pixels, targets, tuple(map(str, range(10))))

    def holds(self) -> frozenset[str]:
        """See `DataSource`."""
        return frozenset({"sklearn/digits"})
