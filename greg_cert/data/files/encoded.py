"""Image files that are read one at a time by number, and by what copies of them are known."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greg_cert.data.files.decode import unreadable
from greg_cert.data.files.threads import fill

Rows = NDArray[np.int64]

BEGIN = 4 << 10  # bytes by which most files that differ are told apart
_SHORT = 6 << 10


@dataclass(frozen=True, eq=False)
class Files:
    """Encoded images below one folder, `root`; reading is safe from several threads."""

    root: str
    names: list[str]  # paths from there, with slashes, which are the same wherever it lies

    def __len__(self) -> int:
        return len(self.names)

    @property
    def on_disk(self) -> bool:
        """Whether the content stays where it is until it is read."""
        return True

    def title(self, row: int) -> str:
        """What errors call the file: its whole path."""
        return f"{self.root}/{self.names[row]}"

    def size(self, row: int) -> int:
        """Bytes in the file."""
        return os.stat(self.title(row)).st_size  # noqa: PTH116  no Path a file

    def content(self, row: int, *, field: str, most: int = -1) -> bytes:
        """The file's bytes, or its first ones.

        Raises:
            DataError: It cannot be read; `field` is where it came from.
        """
        try:
            return self.read(row, most)
        except Exception as error:  # zipfile raises its own
            raise unreadable(self.title(row), error, field=field) from error

    def read(self, row: int, most: int) -> bytes:
        """The first bytes of the file, all of them where `most` is negative."""
        with open(self.title(row), "rb") as file:  # noqa: PTH123
            return file.read(most)


@dataclass(frozen=True, eq=False)
class FileKeys:
    """By which copies of a file are known, once its content is no longer at hand.

    Attributes:
        sizes: (N,) bytes of each file.
        hashes: (N, 16) uint8, BLAKE2b of its content.
        begins: (N, 16) uint8, that of its first `BEGIN` bytes.
    """

    sizes: Rows
    hashes: NDArray[np.uint8]
    begins: NDArray[np.uint8]

    def digests(self, rows: Rows, *, begin: bool = False) -> list[bytes]:
        """The hashes of the rows' contents, or of their beginnings."""
        kept = self.begins if begin else self.hashes
        return [kept[row].tobytes() for row in rows]

    def taken(self, rows: Rows) -> FileKeys:
        """The keys of these rows alone, in that order."""
        return FileKeys(self.sizes[rows], self.hashes[rows], self.begins[rows])


def worth_threads(sizes: Rows) -> bool:
    """Whether files of such sizes, in bytes, take longer to decode than to hand to a thread.

    Measured with JPEG: from about 100x100 pixels on.
    """
    return bool(sizes.mean() >= _SHORT)


def content_hash(content: bytes) -> bytes:
    """BLAKE2b of a file's content, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def file_sizes(files: Files, rows: Rows) -> Rows:
    """Bytes in each of the files, (N,) int64, asked for in several threads."""
    sizes = np.empty(len(rows), dtype=np.int64)
    fill(sizes, lambda at: files.size(int(rows[at])))
    return sizes
