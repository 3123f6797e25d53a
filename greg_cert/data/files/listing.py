"""The image files of a folder or an archive, class by class, in a fixed order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from greg_cert.data.files.archives import below, open_archive
from greg_cert.data.files.classes import class_choice
from greg_cert.data.files.decode import SUFFIXES
from greg_cert.data.files.encoded import Files, FolderFiles, Names, Rows
from greg_cert.data.reject import data_error
from greg_cert.data.schema import FolderSource

_LITTER = {"thumbs.db", "desktop.ini"}  # as hidden files, these are left by file managers


@dataclass(frozen=True)
class Listing:
    """What a source holds, before any of it is read.

    Attributes:
        files: All files that may be read.
        rows: (N,) numbers of the source's own files among them.
        labels: (N,) number of the class of each.
        classes: Names of the classes, in the order of their labels; none for a flat folder.
    """

    files: Files
    rows: Rows
    labels: Rows
    classes: tuple[str, ...]


def list_images(source: FolderSource, *, field: str, labelled: bool) -> Listing:
    """The files of a source, in the order of its classes and, within a class, by name.

    Args:
        source: A folder or an archive, and the classes wanted of it.
        field: Path of the source in the configuration.
        labelled: Whether it needs classes; otherwise a flat folder will do.

    Raises:
        DataError: It is missing, empty or mixed up, or has not the classes it should.
    """
    choice, field = class_choice(source, field=field), f"{field}.path"
    path = source.path.expanduser()
    tree: _Tree
    if source.archived and not path.is_dir():
        tree = _Archive(source, path, field=field)
    else:
        tree = _Folder(path, field=field)
    if not tree.folders and not labelled and not choice.names and tree.loose:
        names = _checked(tree, "", tree.loose, field=field)
        rows = np.arange(len(names), dtype=np.int64)
        return tree.listing([("", names)], rows * 0, ())
    expected = "a subfolder of images for each class" + (
        "" if labelled else ", or images and no subfolder"
    )
    if (tree.loose and not choice.names) or not tree.folders:
        loose = f"the file {tree.title(tree.loose[0])!r}" if tree.loose else ""
        raise data_error(field, expected, loose or f"an empty folder {tree.title('')!r}")
    classes = choice.of(tree.folders, where=tree.title(""))
    groups = [(name, _checked(tree, name, tree.inside(name), field=field)) for name in classes]
    labels = np.repeat(np.arange(len(groups)), [len(names) for _, names in groups])
    return tree.listing(groups, labels, tuple(classes))


def _checked(tree: _Tree, folder: str, names: list[str], *, field: str) -> Names:
    """The names of a folder's files, packed, once all are known to be image files."""
    if not names:
        found = f"none in {tree.title(folder)!r}"
        raise data_error(field, "image files in every class folder", found)
    for name in names:
        if not name.lower().endswith(SUFFIXES) or "/" in name:
            found = tree.title(f"{folder}/{name.rstrip('/')}" if folder else name.rstrip("/"))
            raise data_error(field, f"only {', '.join(SUFFIXES)} files", repr(found))
    return Names(names)


class _Tree(Protocol):
    folders: list[str]
    loose: list[str]

    def title(self, name: str) -> str: ...

    def inside(self, folder: str) -> list[str]:
        """Sorted names in a folder; what is no file has a slash in it."""
        ...

    def listing(
        self, groups: list[tuple[str, Names]], labels: Rows, classes: tuple[str, ...]
    ) -> Listing: ...


class _Folder:
    def __init__(self, path: Path, *, field: str) -> None:
        if not path.is_dir():
            raise data_error(field, "an existing folder of images", repr(str(path)))
        self._path = path
        entries = self.inside("")
        self.folders = [e.rstrip("/") for e in entries if e.endswith("/")]
        self.loose = [e for e in entries if not e.endswith("/")]

    def title(self, name: str) -> str:
        return str(self._path / name)

    def inside(self, folder: str) -> list[str]:
        with os.scandir(self._path / folder) as entries:
            return sorted(
                entry.name if entry.is_file() else f"{entry.name}/"
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _LITTER
            )

    def listing(
        self, groups: list[tuple[str, Names]], labels: Rows, classes: tuple[str, ...]
    ) -> Listing:
        packed = Names()
        for folder, names in groups:
            packed.extend(f"{folder}{os.sep}{name}" if folder else name for name in names)
        rows = np.arange(len(packed), dtype=np.int64)
        return Listing(FolderFiles(str(self._path), packed), rows, labels, classes)


class _Archive:
    def __init__(self, source: FolderSource, path: Path, *, field: str) -> None:
        self._files = open_archive(path, field=field)
        self._path = f"{path}/{source.inside}" if source.inside else str(path)
        self._groups: dict[str, dict[str, int]] = {}
        for name, row in below(self._files, source.inside):
            folder, _, rest = name.rpartition("/") if name.count("/") < 2 else name.partition("/")
            self._groups.setdefault(folder, {})[rest] = row
        self.folders = sorted(name for name in self._groups if name)
        self.loose = sorted(self._groups.get("", ()))
        if not self._groups:
            where = f"a folder {str(source.inside)!r} with images" if source.inside else "images"
            raise data_error(field, f"{where} in the archive", f"none in {str(path)!r}")

    def title(self, name: str) -> str:
        return f"{self._path}/{name}".rstrip("/")

    def inside(self, folder: str) -> list[str]:
        return sorted(self._groups[folder])

    def listing(
        self, groups: list[tuple[str, Names]], labels: Rows, classes: tuple[str, ...]
    ) -> Listing:
        rows = [self._groups[folder][name] for folder, names in groups for name in names]
        return Listing(self._files, np.array(rows, dtype=np.int64), labels, classes)
