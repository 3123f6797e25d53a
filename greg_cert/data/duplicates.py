"""Images that two sets have in common, whatever their labels, their order and their files' names.

Two images are the same if their files have the same bytes, or if they are the same pixels once both
are brought to the size of the data, as a picture saved as PNG and as BMP is. Decoding all of a pool
of files on disk for the latter would take hours, so of such a set the pixels of 2,000 images are
looked at, drawn with a fixed seed: a set that lies in the other is found, a few stray images that
were saved anew may not be. Pictures that were compressed or resized anew are others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.files.encoded import FileKeys, Rows
from greg_cert.data.files.on_disk import FileImages
from greg_cert.data.reject import data_error
from greg_cert.data.splits import pick
from greg_cert.data.types import Images, ImageSet

SAMPLED = 2000
_CHUNK = 4096


class Content:
    """What the images of one set are known by, found once for all that it is compared with.

    The pixels at `rows`, (n,) in rising order, are looked at.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self.rows: Rows = np.arange(len(images))
        if isinstance(images, FileImages):
            self.rows = pick(len(images), SAMPLED, 0)

    @property
    def whole(self) -> bool:
        """Whether the pixels of all are looked at."""
        return len(self.rows) == len(self.images)

    @property
    def files(self) -> FileKeys | FileImages | None:
        """What tells the bytes of their files, where they come from files."""
        if isinstance(self.images, FileImages):
            return self.images
        return self.images.files if isinstance(self.images, ImageSet) else None

    @cached_property
    def keys(self) -> list[bytes | None]:
        """A digest of the pixels for each of `rows`; None for constant images, which are chance."""
        some = self.images if self.whole else self.images.subset(torch.from_numpy(self.rows))
        return list(_keys(some))

    def subset(self, positions: Tensor) -> Content:
        """That of the images at these positions, in rising order."""
        if len(positions) == len(self.images):
            return self
        found = Content(self.images.subset(positions))
        if self.whole and "keys" in self.__dict__:  # looked at already
            found.keys = [self.keys[i] for i in positions.tolist()]
        return found


def shared_files(files: FileKeys | FileImages, others: FileKeys | FileImages) -> Tensor:
    """Which of the files have the content of one of the others: (N,) bool.

    Only of files of a size that occurs on both sides the beginnings are read, and only those that
    begin alike are read whole.
    """
    rows = np.flatnonzero(np.isin(files.sizes, others.sizes))
    other_rows = np.flatnonzero(np.isin(others.sizes, files.sizes))
    for begin in (True, False):
        mine, theirs = files.digests(rows, begin=begin), others.digests(other_rows, begin=begin)
        mine_known, theirs_known = set(mine), set(theirs)
        rows = rows[[digest in theirs_known for digest in mine]]
        other_rows = other_rows[[digest in mine_known for digest in theirs]]
    shared = torch.zeros(len(files.sizes), dtype=torch.bool)
    shared[torch.from_numpy(rows)] = True
    return shared


def without_shared(
    images: Images | Content, others: Images | Content, *, fields: tuple[str, str], policy: str
) -> Tensor:
    """Positions of the images that are not in the other set: all, or an error, or fewer.

    `fields` are the paths of both sets. The policy "refuse" raises if any image is shared, "drop"
    leaves the shared ones out; "never" is "refuse" where nothing can be set.

    Raises:
        DataError: Images are shared and may not be dropped, or dropping them would leave none, or
            some were found in a sample, so that there may be more.
    """
    mine, other = (s if isinstance(s, Content) else Content(s) for s in (images, others))
    shared, complete = _shared(mine, other)
    count, size = int(shared.sum()), len(shared)
    if count and (policy != "drop" or count == size or not complete):
        hint = ""
        if not complete:
            hint = "Set keep: memory beside the files to find them all"
        elif policy == "refuse" and count < size:
            hint = "Set data.shared to drop to leave them out"
        looked = size if complete else min(SAMPLED, max(size, len(other.images)))
        raise data_error(
            fields[0],
            f"no image that is also in {fields[1]}",
            f"{count} of {looked}{'' if complete else ' looked at'} of {mine.images.name!r} "
            f"also in {other.images.name!r}",
            hint=hint,
        )
    return (~shared).nonzero()[:, 0]


def apart(
    images: Images, others: Iterable[tuple[str, Content]], *, field: str, policy: str
) -> Content:
    """The set at `field` without an image of the others, each given with the path of its field."""
    content = Content(images)
    for other, there in others:
        kept = without_shared(content, there, fields=(field, other), policy=policy)
        content = content.subset(kept)
    return content


def _shared(mine: Content, other: Content) -> tuple[Tensor, bool]:
    """Which images are shared, (N,) bool, and whether those are all."""
    shared = torch.zeros(len(mine.images), dtype=torch.bool)
    files, others = mine.files, other.files
    if files is not None and others is not None:
        shared = shared_files(files, others)
        one_folder = getattr(mine.images, "files", 0) is getattr(other.images, "files", 1)
        if one_folder and not (mine.whole and other.whole):  # samples of it would tell nothing
            return shared, True
    known = set(other.keys) - {None}
    same = torch.tensor([key in known for key in mine.keys], dtype=torch.bool)
    rows = torch.from_numpy(mine.rows)
    stray = bool((same & ~shared[rows]).any())
    shared[rows] |= same
    shared[rows] &= torch.tensor([key is not None for key in mine.keys], dtype=torch.bool)
    return shared, not stray or (mine.whole and other.whole)


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
