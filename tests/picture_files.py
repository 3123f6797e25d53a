"""Picture files, and the sets that folders of them are read as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from greg_cert.data.sources.base import Request
from greg_cert.data.sources.folder import FolderSource

RNG = np.random.default_rng(0)


def picture(*shape: int) -> NDArray[np.uint8]:
    """Random grey levels, (H, W) or (H, W, 3)."""
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def read(
    path: Path,
    *,
    labelled: bool = True,
    channels: int | None = None,
    size: int | None = None,
    **options: Any,
) -> Any:
    """The set in a folder or an archive, as `data.id`."""
    source = FolderSource.model_validate({"path": path, **options})
    return source.load(Request("data.id", "id" if labelled else "ood", channels, size))
