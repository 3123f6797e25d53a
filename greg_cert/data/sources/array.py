"""Images and labels from `.npz` and `.npy` files, without ever unpickling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from greg_cert.data.reject import check_memory, data_error
from greg_cert.data.sources.base import Keep, Request, StoredSource
from greg_cert.errors import DataError
from greg_cert.files import is_file, real_path, user_path
from greg_cert.section import Positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from greg_cert.data.types import Images

    _Array = NDArray[np.generic]


class ArraySource(StoredSource):
    """Images in a `.npz` (with labels where needed) or `.npy` file; nothing is ever unpickled."""

    labelled: ClassVar[bool] = True

    source: Literal["array"] = "array"
    path: Path
    """The file."""
    images: str = "images"
    """Key of the images in a `.npz`."""
    labels: str = "labels"
    """Key of the labels in a `.npz`; read only for in-distribution sets."""
    layout: Literal["auto", "nhwc", "nchw", "nhw"] = "auto"
    """Order of the axes; "auto" takes the axis that is 1 or 3 for the channels."""
    scale: Positive | Literal["auto"] = "auto"
    """The stored value that stands for white, such as 1, 255 or 65535; every value lies between 0
    and it, and is divided by it. "auto" takes 255 for uint8 and 1 for floating point, refuses other
    types, and says so where no pixel comes near it.
    """
    keep: Keep = "auto"
    """Where the images stay: in "memory", or (`.npy` only) on "disk", from where they are read as
    they are needed; "auto" leaves them there beyond 4 GiB.
    """

    def _default_title(self) -> str:
        return self.path.stem

    def place(self) -> Path:
        """See `DataSource`."""
        return real_path(self.path)

    def load(self, request: Request) -> Images:
        """The set in the file; labels are read only if they are asked for.

        In memory it has its own channels and size. A `.npy` is memory-mapped: of one that stays on
        disk nothing is read here, and otherwise only what `limit` keeps.

        Raises:
            DataError: The file is missing, damaged, pickled, or does not hold such images and
                labels.
        """
        from greg_cert.data.files.on_disk import ArrayImages, stays_on_disk
        from greg_cert.data.labels import sound_labels
        from greg_cert.data.scale import checked_pixels, tell_if_dark, white_of
        from greg_cert.data.splits import pick
        from greg_cert.data.types import ImageSet

        field, place = request.field, f"{request.field}.images"
        stored, labels = self._stored(field, request.labelled)
        stored = _channels_first(stored, self.layout, field=field)
        chosen = pick(len(stored), self.limit, self.seed)
        targets: Tensor | None = None
        if labels is not None:
            where = f"{field}.labels"
            targets = sound_labels(labels, len(stored), chosen, place=where, field=field)
        white = white_of(stored.dtype, self.scale, field=place)
        mapped = self.path.suffix == ".npy"
        if self.keep == "disk" and not mapped:
            found = str(user_path(self.path))
            raise data_error(f"{field}.keep", "a .npy file, which can be read in parts", found)
        images: Images
        if mapped and stays_on_disk(self.keep, len(chosen) * stored[0].size * stored.itemsize):
            side = request.size or min(stored.shape[2:])
            shape = request.channels or stored.shape[1], side, side
            images = ArrayImages(self.title, place, stored, chosen, shape, white=white)
        else:
            part = stored if len(chosen) == len(stored) else stored[chosen]
            pixels = checked_pixels(part, chosen, field=place, white=white)
            images = ImageSet(self.title, pixels, targets)
        if self.scale == "auto":
            remedy = "Set scale beside them to what does (1, 255, ...)"
            tell_if_dark(images, field=place, remedy=remedy)
        return images

    def _stored(self, field: str, labelled: bool) -> tuple[_Array, _Array | None]:
        """The images as they are stored, and the labels where they are wanted."""
        import numpy as np

        path = user_path(self.path)
        if not is_file(path):
            raise data_error(f"{field}.path", "an existing .npz or .npy file", repr(str(path)))
        if labelled and path.suffix != ".npz":
            raise data_error(
                f"{field}.path", "a .npz file, to hold the labels too", repr(str(path))
            )
        try:
            if path.suffix == ".npy":
                return np.load(path, allow_pickle=False, mmap_mode="r"), None
            if path.suffix != ".npz":
                raise ValueError("its name ends in neither .npz nor .npy")
            # Opened here, since numpy leaves its own handle open when the archive is damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise ValueError("it holds a bare array, as .npy files do")
                if len(set(archive.files)) != len(archive.files):
                    raise ValueError("a key stands in it twice")  # numpy would take the last
                keys = {"images": self.images} | ({"labels": self.labels} if labelled else {})
                for name, key in keys.items():
                    if key not in archive.files:
                        expected = f"one of the file's keys {', '.join(archive.files)}"
                        raise data_error(f"{field}.{name}", expected, repr(key))
                assert archive.zip is not None
                members = archive.zip.infolist()  # numpy's keys are their names without .npy
                wanted = {*keys.values()}
                size = sum(
                    m.file_size for m in members if m.filename.removesuffix(".npy") in wanted
                )
                hint = "Save the images as a .npy file, which is read in parts, or use a folder"
                check_memory(f"{field}.path", size, hint=hint)
                labels = archive[self.labels] if labelled else None
                return archive[self.images], labels
        except DataError:
            raise
        except Exception as error:  # zipfile, zlib and numpy each raise their own on damaged files
            raise data_error(
                f"{field}.path",
                "a complete .npz or .npy file of numbers (pickled objects are never loaded)",
                f"{str(path)!r} ({type(error).__name__}: {error})",
            ) from error


def _channels_first(images: _Array, layout: str, *, field: str) -> _Array:
    """A view of the images as (N, C, H, W)."""
    shape, place = images.shape, f"{field}.images"
    if images.ndim not in (3, 4) or 0 in shape:
        expected = "an array (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0"
        raise data_error(place, expected, f"shape {shape}")
    if layout == "auto" and images.ndim == 3:
        layout = "nhw"
    elif layout == "auto":
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first == last:
            expected = "either axis 1 or axis 3 to be the channels, 1 or 3 of them"
            hint = "Set the layout to nchw or nhwc" if first else ""
            raise data_error(f"{field}.layout", expected, f"shape {shape}", hint=hint)
        layout = "nchw" if first else "nhwc"
    if images.ndim != len(layout):
        raise data_error(f"{field}.layout", f"{images.ndim} axes as in shape {shape}", repr(layout))
    if layout == "nhw":
        return images[:, None]
    images = images.transpose(0, 3, 1, 2) if layout == "nhwc" else images
    if images.shape[1] not in (1, 3):
        raise data_error(place, f"1 or 3 channels in layout {layout}", f"shape {shape}")
    return images
