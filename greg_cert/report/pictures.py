"""Images as text that a page can hold: PNG in a data URI, a pixel for each array element."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from PIL import Image

from greg_cert.errors import DataError

Picture: TypeAlias = "np.ndarray | tuple[np.ndarray, np.ndarray]"
Pictures: TypeAlias = Mapping[tuple[str, int], Picture]


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def checked(array: np.ndarray, where: str) -> np.ndarray:
    """The image as it came, less an axis of one channel.

    Args:
        array: floats in [0, 1], shape (H, W), (H, W, 1) or (H, W, 3). An adversarial image may
            leave [0, 1], because the ball is not clipped.
        where: the image's name for an error message.

    Raises:
        DataError: the array has another shape, is not float, or is not finite.
    """
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or array.size == 0:
        raise DataError(f"image {where}: expected shape (H, W) or (H, W, 3), but got {array.shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"image {where}: expected floats in [0, 1], but got {array.dtype}")
    if not np.isfinite(array).all():
        raise DataError(f"image {where}: expected finite values, but some are not")
    return array


def check_pictures(pictures: Pictures) -> None:
    """Nothing, if every image is one that the page can show.

    Raises:
        DataError: some image is not; the message names its run and index.
    """
    for key, picture in pictures.items():
        for array in pair_of(picture):
            if array is not None:
                checked(array, str(key))


def png_of(array: np.ndarray, where: str) -> bytes:
    """An image as PNG bytes at its own size; values outside [0, 1] are shown as 0 or 1."""
    stream = io.BytesIO()
    values = np.clip(checked(array, where).astype(np.float64), 0, 1)
    pixels = np.rint(255 * values).astype(np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def pair_of(picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """The clean image and, where one was given, its adversarial partner."""
    if isinstance(picture, tuple | list):
        if len(picture) != 2:
            raise DataError(f"expected (clean, adversarial) images, but got {len(picture)} of them")
        return picture[0], picture[1]
    return picture, None
