"""Images and labels from `.npz` and `.npy` files, without ever unpickling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greg_cert.data.files.on_disk import ArrayImages, stays_on_disk
from greg_cert.data.gather import pick
from greg_cert.data.labels import check_labels, limited_labels
from greg_cert.data.reject import data_error
from greg_cert.data.scale import checked_pixels, white_of
from greg_cert.data.schema import ArraySource
from greg_cert.data.types import ImageSet

_Array = NDArray[np.generic]


def load_array(
    source: ArraySource,
    *,
    field: str,
    labelled: bool,
    channels: int | None = None,
    size: int | None = None,
) -> ImageSet | ArrayImages:
    """The set in a `.npz` or `.npy` file; labels are read only if `labelled`.

    In memory it has its own channels and size. A `.npy` is memory-mapped: of one that stays on disk
    nothing is read here, and otherwise only what `limit` keeps.

    Args:
        source: File and layout.
        field: Path of the source in the configuration.
        labelled: Whether to read the labels.
        channels: What images that stay on disk are brought to; None for their own.
        size: As `channels`.

    Raises:
        DataError: The file is missing, damaged, pickled, or does not hold such images and labels.
    """
    path = source.path.expanduser()
    if not path.is_file():
        raise data_error(f"{field}.path", "an existing .npz or .npy file", repr(str(path)))
    if labelled and path.suffix != ".npz":
        raise data_error(f"{field}.path", "a .npz file, to hold the labels too", repr(str(path)))
    labels: _Array | None = None
    try:
        if path.suffix == ".npz":
            # Opened here, since numpy leaves its own handle open when the archive is damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise ValueError("it holds a bare array, as .npy files do")
                if len(set(archive.files)) != len(archive.files):
                    raise ValueError("a key stands in it twice")  # numpy would take the last
                _require_key(archive.files, source.images, field=f"{field}.images")
                if labelled:
                    _require_key(archive.files, source.labels, field=f"{field}.labels")
                    labels = archive[source.labels]
                images = archive[source.images]
        elif path.suffix == ".npy":
            images = np.load(path, allow_pickle=False, mmap_mode="r")
        else:
            raise ValueError("its name ends in neither .npz nor .npy")
    except _Missing as error:
        raise error.told from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own on damaged files
        raise data_error(
            f"{field}.path",
            "a complete .npz or .npy file of numbers (pickled objects are never loaded)",
            f"{str(path)!r} ({type(error).__name__}: {error})",
        ) from error
    images = _channels_first(images, source.layout, field=field)
    checked = None if labels is None else check_labels(labels, len(images), field=f"{field}.labels")
    chosen = pick(len(images), source.limit, source.seed)
    field_images = f"{field}.images"
    white = white_of(images.dtype, source.scale, field=field_images)
    mapped = path.suffix == ".npy"
    if source.keep == "disk" and not mapped:
        raise data_error(f"{field}.keep", "a .npy file, which can be read in parts", str(path))
    if mapped and stays_on_disk(source.keep, len(chosen) * images[0].size * images.itemsize):
        own = images.shape[1:]
        shape = (channels or own[0], *(2 * (size or min(own[1:]),)))
        return ArrayImages(source.title, field_images, images, chosen, shape, white=white)
    part = images if len(chosen) == len(images) else images[chosen]
    pixels = checked_pixels(part, chosen, field=field_images, white=white)
    if checked is None:
        return ImageSet(source.title, pixels)
    return ImageSet(source.title, pixels, limited_labels(checked, chosen, field=field))


class _Missing(Exception):
    """Carries a finished `DataError` past the handler of damaged files."""

    def __init__(self, told: Exception) -> None:
        super().__init__(str(told))
        self.told = told


def _require_key(keys: list[str], key: str, *, field: str) -> None:
    if key not in keys:
        raise _Missing(data_error(field, f"one of the file's keys {', '.join(keys)}", repr(key)))


def _channels_first(images: _Array, layout: str, *, field: str) -> _Array:
    """A view of the images as (N, C, H, W)."""
    shape = images.shape
    field_shape = f"{field}.images"
    if images.ndim not in (3, 4) or 0 in shape:
        expected = "an array (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0"
        raise data_error(field_shape, expected, f"shape {shape}")
    if layout == "auto":
        if images.ndim == 3:
            layout = "nhw"
        else:
            first, last = shape[1] in (1, 3), shape[3] in (1, 3)
            if first == last:
                raise data_error(
                    f"{field}.layout",
                    "either axis 1 or axis 3 to be the channels, 1 or 3 of them",
                    f"shape {shape}",
                    hint="Set the layout to nchw or nhwc" if first else "",
                )
            layout = "nchw" if first else "nhwc"
    if images.ndim != len(layout):
        raise data_error(f"{field}.layout", f"{images.ndim} axes as in shape {shape}", repr(layout))
    if layout == "nhw":
        return images[:, None]
    images = images.transpose(0, 3, 1, 2) if layout == "nhwc" else images
    if images.shape[1] not in (1, 3):
        raise data_error(field_shape, f"1 or 3 channels in layout {layout}", f"shape {shape}")
    return images
