"""Images as text that a page can hold: PNG in a data URI, a pixel for each array element."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from PIL import Image

from greg_cert.errors import DataError

Picture: TypeAlias = "np.ndarray | tuple[np.ndarray, np.ndarray]"
Pictures: TypeAlias = Mapping[tuple[str, int], Picture]

LONGEST = 192
"""Pixels of a side; a larger image is shown smaller, so that a page stays one that can be sent."""


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


def png_of(array: np.ndarray, where: str) -> bytes:
    """An image as PNG bytes; values outside [0, 1] are shown as 0 or 1.

    At its own size, or reduced to `LONGEST` pixels a side by averaging.
    """
    stream = io.BytesIO()
    values = np.clip(checked(array, where).astype(np.float64), 0, 1)
    image = Image.fromarray(np.rint(255 * values).astype(np.uint8))
    if max(image.size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    image.save(stream, format="PNG")
    return stream.getvalue()


def pair_of(picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """The clean image and, where one was given, its adversarial partner."""
    if isinstance(picture, tuple | list):
        if len(picture) != 2:
            raise DataError(f"expected (clean, adversarial) images, but got {len(picture)} of them")
        return picture[0], picture[1]
    return picture, None


def amplified(difference: np.ndarray) -> tuple[np.ndarray, float]:
    """A difference as an image around middle grey, 1/2 + kδ, and its factor k.

    k is the largest of …, 0.5, 1, 2, 5, 10, … that keeps all of it in [0, 1]; 1 where δ is 0.
    """
    largest = float(np.abs(difference).max())
    # Of a difference as small as rounding there is nothing to be seen.
    factor = 1.0 if largest < 1e-9 else _round_down(0.5 / largest)
    return 0.5 + factor * difference, factor


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max((step * power for step in (1, 2, 5) if step * power <= value), default=power)


def outside(image: np.ndarray) -> int:
    """How many values clipping to [0, 1] changes by more than half a grey level of 255."""
    return int((np.abs(np.clip(image, 0, 1) - image) > 0.5 / 255).sum())
