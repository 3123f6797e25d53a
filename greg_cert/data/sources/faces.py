"""Faces, inside scikit-image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from greg_cert.data.sources.base import DataSource, Request
from greg_cert.data.sources.pictures import bundled_file

if TYPE_CHECKING:
    from greg_cert.data.types import Images

_FILE = "skimage/lfw_subset.npy"
_FACES = 100  # of its 200 patches, the first 100 are faces and the others are not


class FacesSource(DataSource):
    """The 100 faces of scikit-image's `lfw_subset`, 25×25 (its other 100 patches hold no face)."""

    source: Literal["faces"] = "faces"

    def load(self, request: Request) -> Images:
        """float32 (100, 1, 25, 25)."""
        import numpy as np
        import torch

        from greg_cert.data.types import ImageSet

        patches = np.load(bundled_file(_FILE, field=request.field), allow_pickle=False)[:_FACES]
        return ImageSet(self.title, torch.from_numpy(patches.astype(np.float32))[:, None])

    def holds(self) -> frozenset[str]:
        """See `DataSource`."""
        return frozenset({_FILE})
