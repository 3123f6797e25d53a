"""The image files of a folder or an archive, class by class, in a fixed order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from greg_cert.data.files.archives import open_archive
from greg_cert.data.files.classes import ClassChoice
from greg_cert.data.files.decode import SUFFIXES
from greg_cert.data.files.encoded import Files, Rows
from greg_cert.data.reject import data_error
from greg_cert.files import is_folder

_SHOWN = 5  # folders that an error names
_LITTER = {"thumbs.db", "desktop.ini"}  # as hidden files, these are left by file managers


@dataclass(frozen=True)
class Listing:
    """What a source holds, before any of it is read.

    Attributes:
        rows: (N,) numbers of the source's own files among all that may be read.
        labels: (N,) number of the class of each.
        classes: Names of the classes, in the order of their labels; none for a flat folder.
    """

    files: Files
    rows: Rows
    labels: Rows
    classes: tuple[str, ...]


def list_images(
    path: Path,
    inside: PurePosixPath | None,
    choice: ClassChoice,
    *,
    archived: bool,
    field: str,
    labelled: bool,
) -> Listing:
    """The files of a set, in the order of its classes and, within a class, by name.

    `path` is a folder or, where `archived`, an archive that has the set in its folder `inside`; a
    set that needs no labels may be a flat folder.

    Raises:
        DataError: It is missing, empty or mixed up, or has not the classes it should.
    """
    tree: _Folder | _Archive
    tree = _Archive(path, inside, field=field) if archived else _Folder(path, field=field)
    classes: list[str] = []
    flat = not tree.folders and not labelled and not choice.names and tree.loose
    if not flat:
        if (tree.loose and not choice.names) or not tree.folders:
            expected = "a subfolder of images for each class" + (
                "" if labelled else ", or images and no subfolder"
            )
            loose = f"the file {tree.title(tree.loose[0])!r}" if tree.loose else ""
            raise data_error(field, expected, loose or f"an empty folder {tree.title('')!r}")
        classes = choice.of(tree.folders, where=tree.title(""))
    paths: list[str] = []
    counts = []
    for folder in classes or [""]:
        names = _checked(tree, folder, field=field)
        paths += [f"{folder}/{name}" if folder else name for name in names]
        counts.append(len(names))
    files, rows = tree.files(paths)
    return Listing(files, rows, np.repeat(np.arange(len(counts)), counts), tuple(classes))


def _checked(tree: _Folder | _Archive, folder: str, *, field: str) -> list[str]:
    """The sorted names of a folder's files, once all are known to be image files."""
    names = sorted(tree.inside(folder))
    if not names:
        found = f"none in {tree.title(folder)!r}"
        raise data_error(field, "image files in every class folder", found)
    for name in names:
        if not name.lower().endswith(SUFFIXES) or "/" in name:
            found = tree.title(f"{folder}/{name.rstrip('/')}" if folder else name.rstrip("/"))
            hint = ""
            if "/" in name and folder:
                hint = f"If the classes are the folders in {tree.title(folder)!r}, name that one"
            raise data_error(field, f"only {', '.join(SUFFIXES)} files", repr(found), hint=hint)
    return names


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


class _Folder:
    """Names of subfolders (`folders`) and of files beside them (`loose`)."""

    def __init__(self, path: Path, *, field: str) -> None:
        if not is_folder(path):
            raise data_error(field, "an existing folder of images", repr(str(path)))
        self._path, self._field = path, field
        entries = sorted(self.inside(""))
        self.folders = [e.rstrip("/") for e in entries if e.endswith("/")]
        self.loose = [e for e in entries if not e.endswith("/")]

    def title(self, name: str) -> str:
        return str(self._path / name)

    def inside(self, folder: str) -> list[str]:
        """Names in a folder; what is no file has a slash in it."""
        try:
            with os.scandir(self._path / folder) as entries:
                return [
                    entry.name if _is_file(entry) else f"{entry.name}/"
                    for entry in entries
                    if not entry.name.startswith(".") and entry.name.lower() not in _LITTER
                ]
        except OSError as error:  # neither a file nor a folder, or one that may not be read
            found = f"{self.title(folder)!r} ({error.strerror or error})"
            raise data_error(self._field, "folders and image files", found) from error

    def files(self, paths: list[str]) -> tuple[Files, Rows]:
        """Files that hold those at these paths, and the numbers of these among them."""
        return Files(str(self._path), paths), np.arange(len(paths))


class _Archive:
    """As `_Folder`, of a folder inside an archive."""

    def __init__(self, path: Path, inside: PurePosixPath | None, *, field: str) -> None:
        self._archive = open_archive(path, field=field)
        if inside is None:
            inside = _only_folder(self._archive.names, path, field=field)
        self._top = f"{path}/{inside}" if inside else str(path)
        start = "" if inside in (None, PurePosixPath()) else f"{inside}/"
        self._rows = {
            name[len(start) :]: row
            for row, name in enumerate(self._archive.names)
            if name.startswith(start)
        }
        if not self._rows:
            where = f"a folder {str(inside)!r} with images" if inside else "images"
            raise data_error(field, f"{where} in the archive", f"none in {str(path)!r}")
        self._names: dict[str, list[str]] = {}
        for name in self._rows:
            folder, slash, rest = name.partition("/")
            self._names.setdefault(folder if slash else "", []).append(rest if slash else name)
        self.folders = sorted(self._names.keys() - {""})
        self.loose = sorted(self._names.get("", ()))

    def title(self, name: str) -> str:
        return f"{self._top}/{name}".rstrip("/")

    def inside(self, folder: str) -> list[str]:
        """See `_Folder`."""
        return self._names[folder]

    def files(self, paths: list[str]) -> tuple[Files, Rows]:
        """See `_Folder`."""
        rows = [self._rows[path] for path in paths]
        return self._archive, np.array(rows, dtype=np.int64)


def _only_folder(names: list[str], path: Path, *, field: str) -> PurePosixPath | None:
    """The folder in an archive that holds the class folders, where it is one below the top.

    Raises:
        DataError: Several do.
    """
    holders = {name.rsplit("/", 2)[0] if name.count("/") > 1 else "" for name in names}
    if not holders or "" in holders:  # an image at the top, or in a class there
        return None
    if len(holders) > 1:
        shown = ", ".join(sorted(holders)[:_SHOWN])
        more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
        raise data_error(
            f"{field.removesuffix('.path')}.inside",
            f"the folder in {str(path)!r} that holds the classes, of {shown}{more}",
            "none",
        )
    return PurePosixPath(holders.pop())
