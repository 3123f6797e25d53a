"""Images from a folder or an archive: a subfolder a class, or flat where labels are not needed."""

from __future__ import annotations

from greg_cert.data.files.file_sets import load_files
from greg_cert.data.files.listing import list_images
from greg_cert.data.files.on_disk import FileImages
from greg_cert.data.schema import FolderSource
from greg_cert.data.types import ImageSet


def load_folder(
    source: FolderSource, *, field: str, labelled: bool, channels: int | None, size: int | None
) -> ImageSet | FileImages:
    """The images of a source, with labels in the order of its classes if `labelled`.

    Classes are those configured, in that order, or all, sorted. Only the files that `limit` keeps
    are opened.

    Raises:
        DataError: As `list_images` and `load_files`.
    """
    listing = list_images(source, field=field, labelled=labelled)
    return load_files(
        listing,
        source,
        field=field,
        place=f"{field}.path",
        labelled=labelled,
        channels=channels,
        size=size,
    )
