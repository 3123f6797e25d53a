"""What stands for white in stored images, and images brought to that scale."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.files.encoded import Rows
from greg_cert.data.reject import data_error
from greg_cert.data.splits import pick
from greg_cert.data.types import Images, ImageSet
from greg_cert.errors import DataWarning

_DARK = 1 / 8  # a set without a pixel above this share of white is worth a word
_LOOKED_AT = 64  # images on disk
_BLOCK = 1024
_ROUNDING = 1e-5  # of white


def white_of(dtype: np.dtype[np.generic], scale: float | Literal["auto"], *, field: str) -> float:
    """The stored value that stands for white, the 1 of [0, 1], in images of this type.

    It is `scale`, or for "auto" 255 for uint8 and 1 for floating point.

    Raises:
        DataError: The type holds no numbers, or "auto" cannot tell what its values mean.
    """
    if scale == "auto":
        if dtype == np.uint8:
            return 255.0
        if dtype.kind == "f":
            return 1.0
        hint = "Set scale beside it to the value that stands for white, such as 1 or 65535"
        expected = "uint8, or floating point in [0, 1]"
        raise data_error(
            field, expected, f"dtype {dtype}", hint=hint if dtype.kind in "bui" else ""
        )
    if dtype.kind not in "buif":
        raise data_error(field, "real numbers", f"dtype {dtype}")
    return scale


def checked_pixels(
    images: NDArray[np.generic], rows: Rows, *, field: str, white: float | None = None
) -> Tensor:
    """Stored images as uint8 grey levels where those hold them exactly, else float32 in [0, 1].

    `images` are (B, C, H, W) numbers; errors number them by `rows`, (B,). `white` is that of
    `white_of`, by default for "auto".

    Raises:
        DataError: A value is not finite or not in [0, white], up to `without_rounding`.
    """
    white = white_of(images.dtype, "auto", field=field) if white is None else white
    whole = images.dtype.kind in "bui"
    if images.dtype == np.uint8 and white == 255:
        return torch.from_numpy(np.array(images, dtype=np.uint8, order="C"))
    grey = whole and white in (1, 255)
    pixels = np.empty(images.shape, dtype=np.uint8 if grey else np.float32)
    for start in range(0, len(images), _BLOCK):
        block: NDArray[Any] = np.asarray(images[start : start + _BLOCK])
        if not whole:
            block = without_rounding(block.astype(np.float32 if white == 1 else np.float64), white)
        _check_range(block, rows[start : start + _BLOCK], white, field)
        if grey:
            block = block.astype(np.uint8) * np.uint8(255 / white)
        elif white != 1:
            block = block / np.float64(white)
        pixels[start : start + _BLOCK] = block
    return torch.from_numpy(pixels)


def without_rounding(values: NDArray[Any], white: float) -> NDArray[Any]:
    """Floats of which those that lie outside of [0, white] by a rounding are at its ends."""
    inside = values.clip(0, white)
    return np.where(abs(values - inside) <= _ROUNDING * white, inside, values)


def _check_range(values: NDArray[Any], rows: Rows, white: float, field: str) -> None:
    wrong = ~((values >= 0) & (values <= white))  # NaN compares false with both
    if wrong.any():
        at = np.argwhere(wrong)[0]
        value = float(values[tuple(at)])
        hint = ""
        if value > white:
            hint = "Store grey levels as uint8, or set scale to the value that stands for white"
        found = f"{value:g} in image {int(rows[at[0]])}"
        raise data_error(field, f"finite values in [0, {white:g}]", found, hint=hint)


def tell_if_dark(images: Images, *, field: str, remedy: str) -> None:
    """Warn of images of which no pixel comes near white, as of masks of 0 and 1 in uint8.

    Of those on disk, a few are looked at. `remedy` is a sentence on what to do.
    """
    few = None if isinstance(images, ImageSet) else pick(len(images), _LOOKED_AT, 0).tolist()
    stored = images.stored(few)
    largest, white = float(stored.max()), 255 if stored.dtype == torch.uint8 else 1
    if 0 < largest <= _DARK * white:
        told = f"{field}: no pixel is above {largest:.3g}, where {white} stands for white. {remedy}"
        warnings.warn(told, DataWarning, stacklevel=2)
