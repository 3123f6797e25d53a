"""Images from a folder: one subfolder a class, or a flat folder where labels are not needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from greg_cert.data.decode import SUFFIXES, decode_image
from greg_cert.data.gather import pick, stack_images
from greg_cert.data.labels import check_labels, limited_labels
from greg_cert.data.reject import data_error
from greg_cert.data.schema import FolderSource
from greg_cert.data.types import ImageSet

_LITTER = {"thumbs.db", "desktop.ini"}  # as hidden files, these are left by file managers


def load_folder(
    source: FolderSource, *, field: str, labelled: bool, channels: int | None, size: int | None
) -> ImageSet:
    """The images of a folder, with labels in the order of the sorted class names if `labelled`.

    Only the files that `limit` keeps are opened.

    Raises:
        DataError: The folder is missing, empty or mixed up, or a file is no sound image.
    """
    section, field = field, f"{field}.path"
    root = source.path.expanduser()
    files, labels, classes = _listing(root, field=field, labelled=labelled)
    targets = check_labels(labels, len(files), field=field) if labelled else None
    chosen = pick(len(files), source.limit, source.seed)
    images = stack_images(
        ((str(files[i]), decode_image(files[i], field=field)) for i in chosen),
        field=field,
        channels=channels,
        size=size,
    )
    if targets is None:
        return ImageSet(source.title, images)
    kept = limited_labels(targets, chosen, field=section)
    return ImageSet(source.title, images, kept, classes)


def _listing(
    root: Path, *, field: str, labelled: bool
) -> tuple[list[Path], np.ndarray[tuple[int], np.dtype[np.int64]], tuple[str, ...]]:
    """All image files in a fixed order, the number of the class of each, and the class names."""
    if not root.is_dir():
        raise data_error(field, "an existing folder of images", repr(str(root)))
    entries = _entries(root)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders and not labelled and entries:
        return _image_files(root, field=field), np.zeros(len(entries), dtype=np.int64), ()
    expected = "a subfolder of images for each class" + (
        "" if labelled else ", or images and no subfolder"
    )
    loose = [entry for entry in entries if not entry.is_dir()]
    if loose or not folders:
        found = f"the file {str(loose[0])!r}" if loose else f"an empty folder {str(root)!r}"
        raise data_error(field, expected, found)
    groups = [_image_files(folder, field=field) for folder in folders]
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    files = [file for group in groups for file in group]
    return files, labels, tuple(folder.name for folder in folders)


def _image_files(folder: Path, *, field: str) -> list[Path]:
    files = _entries(folder)
    if not files:
        raise data_error(field, "image files in every class folder", f"none in {str(folder)!r}")
    for file in files:
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            raise data_error(field, f"only {', '.join(SUFFIXES)} files", repr(str(file)))
    return files


def _entries(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.name.lower() not in _LITTER
    )
