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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from greg_cert.data.files.decode import SUFFIXES
from greg_cert.data.files.encoded import Files
from greg_cert.data.reject import data_error
from greg_cert.files import plain_file

MOST_A_FILE = 64 << 20  # bytes of one image file
MOST_IN_ALL = 8 << 30  # bytes that a compressed .tar may unpack to
_OPEN_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class ArchiveFiles(Files):
    """The image files of one archive, which is their `root`."""

    sizes: list[int]  # bytes of each, unpacked
    part: Callable[[int, int], bytes]  # the first of one, by its number and how many at most
    on_disk: bool = True

    def size(self, row: int) -> int:
        """See `Files`."""
        return self.sizes[row]

    def read(self, row: int, most: int) -> bytes:
        """See `Files`."""
        size = self.sizes[row]
        return self.part(row, size if most < 0 else min(size, most))


def open_archive(path: Path, *, field: str) -> Files:
    """The image files of an archive; hidden files and those of other kinds are passed over.

    The last two archives stay open in this process until they change or `close_archives` is called,
    so that the splits of a set that lie in one archive are found by reading it once.

    Raises:
        DataError: It is missing, damaged or encrypted, a name in it leads out of it, a name stands
            there twice, or it is larger than the bounds.
    """
    try:
        found = plain_file(path.resolve(strict=True))
        now = found.stat()
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
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
    try:
        # Some programs on Windows part folders by backslashes.
        every = [(m.filename.replace("\\", "/"), m) for m in archive.infolist()]
        chosen = [(n, m) for n, m in every if not n.endswith("/") and _wanted(n)]
        names, members = [str(PurePosixPath(n)) for n, _ in chosen], [m for _, m in chosen]
        for member in members:
            _check_size(member.filename, member.file_size)
            if member.flag_bits & 1:
                raise ValueError(f"{member.filename!r} is encrypted")
    except BaseException:
        archive.close()
        raise

    def part(row: int, most: int) -> bytes:
        with archive.open(members[row]) as member:  # it locks around its one file
            return member.read(most)

    sizes = [member.file_size for member in members]
    return ArchiveFiles(path, names, sizes, part)


def _read_tar(path: str) -> ArchiveFiles:
    names: list[str] = []
    sizes: list[int] = []
    starts: list[int] = []
    contents: list[bytes] = []
    with _unpacked(path) as (file, packed), tarfile.open(fileobj=file, mode="r:") as archive:
        records: Any = archive
        in_all = 0
        for member in archive:
            in_all += member.size
            if packed and in_all > MOST_IN_ALL:
                raise _TooLarge(f"at most {MOST_IN_ALL} bytes in a compressed archive")
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            if plain and not member.issparse() and _wanted(member.name):
                _check_size(member.name, member.size)
                names.append(str(PurePosixPath(member.name)))
                sizes.append(member.size)
                starts.append(member.offset_data)
                if packed:
                    taken = archive.extractfile(member)
                    contents.append(b"" if taken is None else taken.read())
            records.members = []  # or it would keep a record of every member
        # tarfile takes a file that was cut between two members for a whole one.
        file.seek(records.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends before the mark of its end")
    if packed:
        return ArchiveFiles(path, names, sizes, lambda row, most: contents[row][:most], False)

    def part(row: int, most: int) -> bytes:
        with open(path, "rb") as file:  # noqa: PTH123
            file.seek(starts[row])
            return file.read(most)

    return ArchiveFiles(path, names, sizes, part)


class _Guarded:
    """A file whose reads are bounded: a header may declare a name of any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """As of the file, but at most `MOST_A_FILE` bytes."""
        if not 0 <= size <= MOST_A_FILE + tarfile.BLOCKSIZE:
            raise _TooLarge(f"members of at most {MOST_A_FILE} bytes")
        return self._read(size)


@contextmanager
def _unpacked(path: str) -> Iterator[tuple[Any, bool]]:
    """The bytes of a `.tar`, whatever it is packed with, and whether it is packed."""
    import bz2
    import gzip
    import lzma

    openers = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(6)
    opener: Any = next((o for magic, o in openers.items() if start.startswith(magic)), None)
    # Reads are small, and the decompressors are written in Python around each.
    with io.BufferedReader((opener or io.FileIO)(path, "rb"), 1 << 20) as file:
        yield _Guarded(file), opener is not None


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
