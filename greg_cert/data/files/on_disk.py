"""Sets whose images stay on disk and are read, decoded and resized as they are asked for.

What is kept is a few dozen bytes an image: its file's name (shared by all subsets), its number, its
label and its file's size. Every call reads anew; the operating system caches files as it sees fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.files.decode import decode_bytes, fitted
from greg_cert.data.files.encoded import BEGIN, Files, Rows, content_hash, worth_threads
from greg_cert.data.files.threads import fill
from greg_cert.data.geometry import Crop, conform, resized
from greg_cert.data.reject import data_error
from greg_cert.data.scale import checked_pixels
from greg_cert.data.types import Indices, selector, unit_range

MEMORY_BYTES = 4 << 30  # `keep: auto` leaves larger sets on disk
Part = Callable[[int, int, int], tuple[int, int, int, int] | None]
"""Which part of a picture is taken: its place among those asked for, height and width to top, left,
height and width, or None for what is taken anyway.
"""
_LOOKED_INTO = 256  # images whose content goes into a fingerprint


class _OnDisk:
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def _at(self, indices: Indices | None) -> Rows:
        chosen = torch.arange(len(self))
        return (chosen if indices is None else chosen[selector(indices)]).numpy()

    def stored(self, indices: Indices | None = None) -> Tensor:
        """See `Images`."""
        raise NotImplementedError

    def pixels(self, indices: Indices | None = None) -> Tensor:
        """See `Images`."""
        return unit_range(self.stored(indices))


@dataclass(frozen=True, eq=False)
class FileImages(_OnDisk):
    """Images that stay encoded in their files; `Images` tells what can be asked of them.

    Attributes:
        field: Path of the field it came from, for errors on reading.
        files: All files that it may read.
        rows: (N,) its own among them.
        sizes: (N,) bytes of each of its files when it was listed.
        image_shape: What images are brought to.
        crop: What is kept of each.
    """

    name: str
    field: str
    files: Files
    rows: Rows
    sizes: Rows
    image_shape: tuple[int, int, int]
    crop: Crop = 1.0
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def stored(self, indices: Indices | None = None, box: Part | None = None) -> Tensor:
        """The images at `indices` (all when None), uint8 (B, C, H, W), decoded in several threads.

        Of a picture that `box` gives a part of, that is taken, whatever `crop` is.

        Raises:
            DataError: A file cannot be read any more, or is no sound image.
        """
        rows = self.rows[self._at(indices)]
        images = torch.empty((len(rows), *self.image_shape), dtype=torch.uint8)
        threads = worth_threads(self.sizes)
        fill(images, lambda at: self._decoded(int(rows[at]), at, box), threads=threads)
        return images

    def _decoded(self, row: int, at: int, box: Part | None) -> Tensor:
        content = self.files.content(row, field=self.field)
        title, (channels, size, _) = self.files.title(row), self.image_shape
        image = decode_bytes(content, title, field=self.field)
        part = None if box is None else box(at, image.shape[1], image.shape[2])
        if part is not None:
            top, left, height, width = part
            image = image[:, top : top + height, left : left + width]
            return resized(image[None], channels=channels, size=size)[0]
        return fitted(image, title, field=self.field, channels=channels, size=size, crop=self.crop)

    def subset(self, indices: Indices) -> FileImages:
        """See `Images`; shares the files."""
        at = self._at(indices)
        labels = None if self.labels is None else self.labels[torch.from_numpy(at)]
        return replace(self, rows=self.rows[at], sizes=self.sizes[at], labels=labels)

    def digests(self, rows: Rows, *, begin: bool = False) -> list[bytes]:
        """The content hashes of the files at these positions of the set, or of their beginnings."""
        found, most = [b""] * len(rows), BEGIN if begin else -1

        def digest(at: int) -> bytes:
            row = int(self.rows[rows[at]])
            return content_hash(self.files.content(row, field=self.field, most=most))

        fill(found, digest)
        return found

    def fingerprint(self) -> str:
        """SHA-256 over each file's name, size and label, the shape and crop, and some contents.

        Files are named relative to the set's root. The bytes of at most 256 of them, evenly spread,
        are read: a change of bytes in others, which leaves the size as it was, goes unseen.
        """
        digest = hashlib.sha256(f"files {len(self)} {self.image_shape} {self.crop}".encode())
        for row, size in zip(self.rows.tolist(), self.sizes.tolist(), strict=True):
            digest.update(f"{self.files.names[row]}\0{size}\0".encode("utf-8", "surrogateescape"))
        labels = self.labels
        digest.update(b"none" if labels is None else labels.contiguous().numpy().tobytes())
        for content in self.digests(_spread_out(len(self))):
            digest.update(content)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ArrayImages(_OnDisk):
    """Images that stay in an uncompressed array file; `Images` tells what can be asked of them.

    Attributes:
        field: Path of the field it came from, for errors on reading.
        array: (M, 1 or 3, H, W) memory-mapped numbers.
        rows: (N,) which of its images.
        image_shape: What images are brought to.
        white: The value in the array that stands for white; by default that of its type.
    """

    name: str
    field: str
    array: NDArray[np.generic]
    rows: Rows
    image_shape: tuple[int, int, int]
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    white: float | None = None

    def stored(self, indices: Indices | None = None) -> Tensor:
        """The images at `indices` (all when None), (B, C, H, W), uint8 or float32.

        Raises:
            DataError: A value is not in [0, white].
        """
        rows = self.rows[self._at(indices)]
        channels, size = self.image_shape[:2]
        images = checked_pixels(self.array[rows], rows, field=self.field, white=self.white)
        return conform(images, channels=channels, size=size)

    def subset(self, indices: Indices) -> ArrayImages:
        """See `Images`; shares the file."""
        at = self._at(indices)
        labels = None if self.labels is None else self.labels[torch.from_numpy(at)]
        return replace(self, rows=self.rows[at], labels=labels)

    def fingerprint(self) -> str:
        """SHA-256 over the array's shape and type, the rows, and at most 256 images, evenly spread.

        A change of other images goes unseen.
        """
        layout = f"{self.array.shape} {self.array.dtype} {self.image_shape}"
        if self.white not in (None, 255 if self.array.dtype == np.uint8 else 1):
            layout += f" {self.white}"
        digest = hashlib.sha256(f"array {layout}".encode())
        digest.update(self.rows.tobytes())
        digest.update(np.ascontiguousarray(self.array[self.rows[_spread_out(len(self))]]).data)
        return digest.hexdigest()


def stays_on_disk(keep: str, values: int) -> bool:
    """Whether a set of so many uint8 values is left on disk under a `keep` of the configuration."""
    return keep == "disk" or (keep == "auto" and values > MEMORY_BYTES)


def needs_shape(channels: int | None, size: int | None, *, field: str) -> tuple[int, int, int]:
    """The shape that images on disk are brought to, which must be configured.

    Raises:
        DataError: Either is None: nothing says what to bring them to before all are read.
    """
    if channels is None or size is None:
        missing = "image_size" if size is None else "channels"
        raise data_error(
            f"{field}.keep",
            "data.image_size and data.channels beside images that stay on disk",
            f"no {missing}",
            hint="Set both, or keep: memory",
        )
    return channels, size, size


def _spread_out(count: int) -> Rows:
    """At most 256 positions, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _LOOKED_INTO)).round().astype(np.int64))
