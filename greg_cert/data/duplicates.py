"""Images that two sets have in common.

Sets in memory, and arrays on disk, are compared pixel for pixel as they are used. Decoding a pool
of files on disk for that would take hours, so where such a set is on either side

- files are compared with files by content: a copy is found, a re-encoded or resized one is not;
- files are compared with images that come from no file by the pixels of 2,000 of the files' images,
  drawn with a fixed seed: a set that lies in the other is found, a few stray images may not be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.encoded import FileKeys, Rows
from greg_cert.data.gather import pick
from greg_cert.data.on_disk import FileImages
from greg_cert.data.reject import data_error
from greg_cert.data.types import Images, ImageSet

SAMPLED = 2000
_CHUNK = 4096


def shared_images(images: Tensor, others: Tensor) -> Tensor:
    """Which of the images also occur among the others: (N,) bool.

    Images are compared in 256 grey levels. Constant images, which occur by chance, never count.

    Args:
        images: (N, C, H, W), uint8 or float32 in [0, 1].
        others: (M, C, H, W), uint8 or float32 in [0, 1].
    """
    return _by_pixels(ImageSet("images", images), ImageSet("others", others))


def shared_files(files: FileKeys | FileImages, others: FileKeys | FileImages) -> Tensor:
    """Which of the files have the content of one of the others: (N,) bool.

    Only files of a size that occurs on both sides are read.
    """
    rows = np.flatnonzero(np.isin(files.sizes, others.sizes))
    other_rows = np.flatnonzero(np.isin(others.sizes, files.sizes))
    known = set(others.digests(other_rows))
    shared = torch.zeros(len(files.sizes), dtype=torch.bool)
    for row, digest in zip(rows.tolist(), files.digests(rows), strict=True):
        shared[row] = digest in known
    return shared


def without_shared(
    training: Images, test: Images, *, fields: tuple[str, str], policy: str
) -> Tensor:
    """Positions of the training images that are not in the test set: all, or an error, or fewer.

    Args:
        training: Set whose images may be dropped.
        test: Set that training must not know.
        fields: Paths of the fields that hold the two sets.
        policy: "refuse" raises if any image is shared, "drop" leaves the shared ones out.

    Raises:
        DataError: Images are shared and may not be dropped, or dropping them would leave none, or
            some were found in a sample, so that there may be more.
    """
    shared, whole = _shared(training, test)
    count = int(shared.sum())
    if count and (policy == "refuse" or count == len(training) or not whole):
        hint = "Set data.shared to drop to leave them out" if policy == "refuse" else ""
        if not whole:
            hint = "Set keep: memory beside the files to find them all"
        looked = (
            len(training) if whole else f"{min(SAMPLED, max(len(training), len(test)))} looked at"
        )
        raise data_error(
            fields[0],
            f"no image that is also in {fields[1]}",
            f"{count} of {looked} of {training.name!r} also in {test.name!r}",
            hint=hint,
        )
    return (~shared).nonzero()[:, 0]


def _shared(training: Images, test: Images) -> tuple[Tensor, bool]:
    """Which training images are shared, and whether all were looked at."""
    if not isinstance(training, FileImages) and not isinstance(test, FileImages):
        return _by_pixels(training, test), True
    files, other_files = _files(training), _files(test)
    if files is not None and other_files is not None:
        return shared_files(files, other_files), True
    sampled = [_sample(s) if isinstance(s, FileImages) else s for s in (training, test)]
    found = _by_pixels(sampled[0], sampled[1])
    if isinstance(training, FileImages):
        rows = torch.from_numpy(_rows(training))
        shared = torch.zeros(len(training), dtype=torch.bool)
        shared[rows] = found
        return shared, len(rows) == len(training)
    return found, len(sampled[1]) == len(test)


def _files(images: Images) -> FileKeys | FileImages | None:
    if isinstance(images, FileImages):
        return images
    return images.files if isinstance(images, ImageSet) else None


def _rows(images: Images) -> Rows:
    return pick(len(images), SAMPLED, 0)


def _sample(images: Images) -> Images:
    return images.subset(torch.from_numpy(_rows(images)))


def _by_pixels(images: Images, others: Images) -> Tensor:
    known = set(_keys(others)) - {None}
    return torch.tensor([key in known for key in _keys(images)], dtype=torch.bool)


def _keys(images: Images) -> Iterator[bytes | None]:
    """A digest an image, or None for a constant one; a few thousand are held at a time."""
    for start in range(0, len(images), _CHUNK):
        block = images.stored(slice(start, start + _CHUNK))
        if block.dtype != torch.uint8:
            block = (block * 255).round().to(torch.uint8)
        flat = block.flatten(2)  # (B, C, H*W)
        varied = (flat.amax(dim=2) > flat.amin(dim=2)).any(dim=1).tolist()
        rows = block.flatten(1).contiguous().numpy()
        for row, ok in zip(rows, varied, strict=True):
            yield hashlib.blake2b(row.data, digest_size=16).digest() if ok else None
