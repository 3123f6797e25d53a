"""Image files inside `.tar` and `.zip` archives, read without unpacking anything to disk.

An uncompressed `.tar` and a `.zip` are indexed and read where they lie. A compressed `.tar` can
only be read from its beginning, so its image files are kept, still encoded, in memory; what is kept
and how much may be decompressed is bounded. Links, devices and other special members are passed
over.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from greg_cert.data.files.decode import SUFFIXES
from greg_cert.data.files.encoded import Files, Names
from greg_cert.data.reject import data_error

MOST_A_FILE = 64 << 20  # bytes of one image file
MOST_IN_ALL = 8 << 30  # bytes that a compressed .tar may unpack to
_OPEN_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class ArchiveFiles:
    """The image files of one archive.

    Attributes:
        path: The archive.
        names: Their paths inside it.
        starts: Where each begins in the archive (`.tar`) or in `content` (compressed `.tar`).
        sizes: Bytes of each, unpacked.
        content: All of them, one after the other, for a compressed `.tar`.
        zipped: The open archive, for a `.zip`.
    """

    path: str
    names: Names
    starts: array[int]
    sizes: array[int]
    content: bytearray | None = None
    zipped: zipfile.ZipFile | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def on_disk(self) -> bool:
        """See `Files`."""
        return self.content is None

    def name(self, row: int) -> str:
        """See `Files`."""
        return self.names[row]

    def title(self, row: int) -> str:
        """See `Files`."""
        return f"{self.path}/{self.names[row]}"

    def size(self, row: int) -> int:
        """See `Files`."""
        return self.sizes[row]

    def read(self, row: int, most: int = -1) -> bytes:
        """See `Files`."""
        start, size = self.starts[row], self.sizes[row]
        size = size if most < 0 else min(size, most)
        if self.content is not None:
            return bytes(self.content[start : start + size])
        if self.zipped is not None:
            with self.zipped.open(self.names[row]) as member:  # it locks around its one file
                return member.read(most)
        with open(self.path, "rb") as file:  # noqa: PTH123
            file.seek(start)
            return file.read(size)


def open_archive(path: Path, *, field: str) -> Files:
    """The image files of an archive; hidden files and those of other kinds are passed over.

    The last two archives stay open in this process until they change or `close_archives` is called,
    so that the splits of a set that lie in one archive are found by reading it once.

    Raises:
        DataError: It is missing, damaged or encrypted, a name in it leads out of it, a name stands
            there twice, or it is larger than the bounds.
    """
    try:
        found = path.resolve(strict=True)
        now = found.stat()
    except OSError as error:
        raise data_error(field, "an existing folder or archive", repr(str(path))) from error
    try:
        return _opened(str(found), now.st_mtime_ns, now.st_size)
    except _TooLarge as error:
        raise data_error(
            field, str(error), repr(str(path)), hint="Unpack it and name the folder"
        ) from None
    except Exception as error:  # tarfile, zipfile and the decompressors each raise their own
        what = "a complete .tar or .zip archive with each file in it once, below its top"
        raise data_error(field, what, f"{str(path)!r} ({type(error).__name__}: {error})") from error


def close_archives() -> None:
    """Forget the archives that were opened; sets that still read from one keep it open."""
    _opened.cache_clear()


class _TooLarge(Exception):
    """Says what was expected instead."""


@lru_cache(maxsize=_OPEN_AT_ONCE)
def _opened(path: str, modified: int, size: int) -> ArchiveFiles:
    found = _read_zip(path) if path.lower().endswith(".zip") else _read_tar(path)
    if len(set(found.names)) != len(found.names):
        raise ValueError("a name stands in it twice")
    return found


def _read_zip(path: str) -> ArchiveFiles:
    archive = zipfile.ZipFile(path)
    names, sizes = Names(), array("q")
    try:
        for member in archive.infolist():
            if not member.is_dir() and _wanted(member.filename):
                _check_size(member.filename, member.file_size)
                if member.flag_bits & 1:
                    raise ValueError(f"{member.filename!r} is encrypted")
                names.extend([member.filename])
                sizes.append(member.file_size)
    except BaseException:
        archive.close()
        raise
    return ArchiveFiles(path, names, sizes, sizes, zipped=archive)


def _read_tar(path: str) -> ArchiveFiles:
    names, starts, sizes = Names(), array("q"), array("q")
    with _decompressed(path) as (file, packed):
        content = bytearray() if packed else None
        in_all = 0
        with tarfile.open(fileobj=file, mode="r:") as archive:
            records: Any = archive
            for member in archive:
                in_all += member.size
                if packed and in_all > MOST_IN_ALL:
                    raise _TooLarge(f"at most {MOST_IN_ALL} bytes in a compressed archive")
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                if plain and not member.issparse() and _wanted(member.name):
                    _check_size(member.name, member.size)
                    names.extend([str(PurePosixPath(member.name))])
                    sizes.append(member.size)
                    if content is None:
                        starts.append(member.offset_data)
                    else:
                        starts.append(len(content))
                        taken = archive.extractfile(member)
                        content += b"" if taken is None else taken.read()
                records.members = []  # or it would keep a record of every member
            # tarfile takes a file that was cut between two members for a whole one.
            file.seek(records.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it ends before the mark of its end")
    return ArchiveFiles(path, names, starts, sizes, content=content)


class _Guarded:
    """A file whose reads are bounded: a header may declare a name of any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """As of the file, but at most `MOST_A_FILE` bytes."""
        if not 0 <= size <= MOST_A_FILE + tarfile.BLOCKSIZE:
            raise _TooLarge(f"members of at most {MOST_A_FILE} bytes")
        return self._read(size)


class _decompressed:
    """The bytes of a `.tar`, whatever it is packed with, and whether it is packed."""

    def __init__(self, path: str) -> None:
        import bz2
        import gzip
        import lzma

        with open(path, "rb") as file:  # noqa: PTH123
            start = file.read(6)
        openers: dict[bytes, Any] = {
            b"\x1f\x8b": gzip.open,
            b"\xfd7zXZ\0": lzma.open,
            b"BZh": bz2.open,
        }
        opener = next((o for magic, o in openers.items() if start.startswith(magic)), None)
        self._packed = opener is not None
        # Reads are small, and the decompressors are written in Python around each.
        self._file: IO[bytes] = io.BufferedReader((opener or io.FileIO)(path, "rb"), 1 << 20)

    def __enter__(self) -> tuple[Any, bool]:
        return _Guarded(self._file), self._packed

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _wanted(name: str) -> bool:
    """Whether a member is an image file that is not hidden.

    Raises:
        ValueError: Its name leads out of the archive.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"the name {name!r} leads out of it")
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


def _check_size(name: str, size: int) -> None:
    if size > MOST_A_FILE:
        raise _TooLarge(f"image files of at most {MOST_A_FILE} bytes (not {name!r} of {size})")


def below(files: Files, folder: PurePosixPath | None) -> Iterator[tuple[str, int]]:
    """Name below a folder of the archive, and number, of each file that lies in it."""
    start = "" if folder is None or folder == PurePosixPath() else f"{folder}/"
    for row in range(len(files)):
        name = files.name(row)
        if name.startswith(start):
            yield name[len(start) :], row
