"""From listed image files to a set of images, in memory or left on disk."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.files.decode import decode_bytes, fitted
from greg_cert.data.files.encoded import (
    BEGIN,
    FileKeys,
    Files,
    Rows,
    content_hash,
    file_sizes,
    worth_threads,
)
from greg_cert.data.files.listing import Listing
from greg_cert.data.files.on_disk import FileImages, needs_shape, stays_on_disk
from greg_cert.data.files.threads import fill
from greg_cert.data.geometry import Crop, centre_side
from greg_cert.data.labels import sound_labels
from greg_cert.data.reject import data_error
from greg_cert.data.sources.base import DataSource, Keep, Request
from greg_cert.data.splits import pick
from greg_cert.data.types import ImageSet

_CHUNK = 1024  # images decoded before they are put in their places


def load_files(
    listing: Listing, source: DataSource, request: Request, *, place: str, crop: Crop, keep: Keep
) -> ImageSet | FileImages:
    """The set of the listed images; only the files that `limit` keeps are ever opened.

    Where they are not asked for, `channels` are 3 if any image is in colour, and `size` is that of
    the images, the same for all. `place` is the path of the field that says where the files are.

    Raises:
        DataError: Labels are unsound, a file is no sound image, sizes differ where none is
            configured, or images that should stay on disk cannot.
    """
    files, field = listing.files, request.field
    channels, size = request.channels, request.size
    chosen = pick(len(listing.rows), source.limit, source.seed)
    targets, classes = None, None
    if request.labelled:
        labels, count = listing.labels, len(listing.rows)
        targets = sound_labels(labels, count, chosen, place=place, field=field)
        classes = listing.classes
    rows = listing.rows[chosen]
    if keep == "disk" and not files.on_disk:
        found = f"keep: disk for {files.title(int(rows[0]))!r}"
        expected = "a folder, an uncompressed .tar or a .zip, whose images can be read singly"
        raise data_error(f"{field}.keep", expected, found, hint="Unpack it, or keep: memory")
    values = 0
    if keep == "auto":
        deep, side = channels, size
        if deep is None or side is None:
            first = _decode(files, int(rows[0]), place)[0]
            deep = deep or len(first)
            side = side or _side(first.shape[1], first.shape[2], crop, field)
        values = len(rows) * deep * side * side
    if stays_on_disk(keep, values):
        shape, sizes = needs_shape(channels, size, field=field), file_sizes(files, rows)
        return FileImages(source.title, place, files, rows, sizes, shape, crop, targets, classes)
    images, keys = _decode_all(files, rows, place, channels, size, crop)
    return ImageSet(source.title, images, targets, classes, keys)


def _side(height: int, width: int, crop: Crop, field: str) -> int:
    """The side that images have where none is configured."""
    if crop == "image_size":
        raise data_error(field, "data.image_size beside crop: image_size", "none")
    return centre_side(height, width, crop)


def _decode(files: Files, row: int, field: str) -> tuple[Tensor, bytes]:
    """Pixels and content of one file."""
    content = files.content(row, field=field)
    return decode_bytes(content, files.title(row), field=field), content


def _decode_all(
    files: Files, rows: Rows, field: str, channels: int | None, size: int | None, crop: Crop
) -> tuple[Tensor, FileKeys]:
    """All the images as uint8 (N, C, H, W), decoded in several threads, and their files' keys."""
    height, width = _decode(files, int(rows[0]), field)[0].shape[1:]
    side = size or _side(height, width, crop, field)
    threads = worth_threads(file_sizes(files, rows[:: max(1, len(rows) // 64)]))
    images = torch.empty((len(rows), channels or 1, side, side), dtype=torch.uint8)
    hashes, begins = np.empty((2, len(rows), 16), np.uint8)
    keys = FileKeys(np.empty(len(rows), np.int64), hashes, begins)

    def read(start: int, offset: int) -> Tensor:
        at = start + offset
        image, content = _decode(files, int(rows[at]), field)
        if size is None and image.shape[1:] != (height, width):
            raise data_error(
                field,
                f"images of one size, like the first of {height}x{width}",
                f"{files.title(int(rows[at]))!r} of {image.shape[1]}x{image.shape[2]}",
                hint="Set data.image_size to have them all resized",
            )
        keys.sizes[at] = len(content)
        for kept, part in ((hashes, content), (begins, content[:BEGIN])):
            kept[at] = np.frombuffer(content_hash(part), np.uint8)
        deep, title = channels or len(image), files.title(int(rows[at]))
        return fitted(image, title, field=field, channels=deep, size=side, crop=crop)

    for start in range(0, len(rows), _CHUNK):
        found: list[Tensor] = [images[0]] * min(_CHUNK, len(rows) - start)
        fill(found, partial(read, start), threads=threads)
        if max(len(image) for image in found) > images.shape[1]:  # the first in colour
            images = images.expand(-1, 3, -1, -1).contiguous()
        for at, image in enumerate(found, start):
            images[at] = image  # grey among colour is repeated
    return images, keys
