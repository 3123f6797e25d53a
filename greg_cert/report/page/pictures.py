"""The pictures of one report: sample images and the attacks on them, as arrays and as PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, as_floats, read_pictures
from greg_cert.certificates.results import Results
from greg_cert.errors import DataError

Pictures: TypeAlias = Mapping[tuple[str, int], "np.ndarray | tuple[np.ndarray, np.ndarray]"]

LONGEST = 192
"""Pixels of a side; a larger image is shown smaller, so that a page stays one that can be sent."""


@dataclass(frozen=True)
class Shown:
    """What is shown of one sample; score and class, where known, are the adversarial image's."""

    clean: np.ndarray  # floats in [0, 1], (H, W) or (H, W, 3)
    attacked: np.ndarray | None = None  # the adversarial image, which may leave [0, 1]
    searched: bool = False  # whether an attack is known to have been looked for
    score: float | None = None
    predicted: int | None = None


Key: TypeAlias = tuple[str, str, int]
"""Run, OOD test set (empty for an ID sample) and sample index."""


def given_pictures(images: Pictures) -> dict[Key, Shown]:
    """Images that a caller gave, by (run, index), of ID samples.

    Raises:
        DataError: an image has the wrong shape, type or values.
    """
    pictures = {}
    for (run, index), picture in images.items():
        pair: list[Any] = [*picture] if isinstance(picture, tuple | list) else [picture, None]
        if len(pair) != 2:
            raise DataError(f"expected (clean, adversarial) images, but got {len(pair)} of them")
        where = str((run, index))
        attacked = None if pair[1] is None else _checked(pair[1], where)
        pictures[run, "", index] = Shown(_checked(pair[0], where), attacked)
    return pictures


def _checked(array: np.ndarray, where: str) -> np.ndarray:
    """The image as it came, less an axis of one channel; `where` names it in an error message.

    An adversarial image may leave [0, 1], because the ball is not clipped.
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


def kept_pictures(results: Results) -> dict[Key, Shown]:
    """The pictures in the results' folder that are of the very samples in the tables.

    A picture whose threshold, score or radius is not its row's is left out: a verification that was
    killed may leave pictures of earlier results.

    Raises:
        RunError: the file is damaged.
    """
    pictures = read_pictures(results.folder / PICTURES)
    rows = _numbers(results) if pictures else {}
    return {p.key: _shown(p) for p in pictures if p.key in rows and p.fits(*rows[p.key])}


def _numbers(results: Results) -> dict[Key, tuple[float, float, float]]:
    """Threshold, score and attack radius of every row."""
    columns = ["run", "dataset", "index", "threshold", "score", "radius_attack"]
    frames = [results.frame.assign(dataset=""), *([] if results.ood is None else [results.ood])]
    rows = pd.concat([frame[columns] for frame in frames], ignore_index=True)
    return {
        (str(run), str(dataset), int(index)): (float(gamma), float(score), float(radius))
        for run, dataset, index, gamma, score, radius in rows.itertuples(index=False, name=None)
    }


def _shown(picture: SamplePicture) -> Shown:
    clean = _channels_last(as_floats(picture.clean))
    if picture.difference is None:
        return Shown(clean, searched=True)
    attacked = clean + _channels_last(picture.difference)
    return Shown(clean, attacked, True, picture.attacked_score, picture.attacked_class)


def _channels_last(image: np.ndarray) -> np.ndarray:
    """A (C, H, W) image as float64, (H, W, C), or (H, W) where C is 1."""
    array = image.astype(np.float64)
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)


def png_of(image: np.ndarray) -> bytes:
    """An image (H, W) or (H, W, 3) as PNG bytes; values outside [0, 1] are shown as 0 or 1.

    At its own size, or reduced to `LONGEST` pixels a side by averaging.
    """
    stream = io.BytesIO()
    values = np.clip(image.astype(np.float64), 0, 1)
    picture = Image.fromarray(np.rint(255 * values).astype(np.uint8))
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    picture.save(stream, format="PNG")
    return stream.getvalue()


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def amplified(difference: np.ndarray) -> tuple[np.ndarray, float]:
    """A difference as an image around middle grey, 1/2 + kδ, and its factor k.

    k is the largest of …, 0.5, 1, 2, 5, 10, … that keeps all of it in [0, 1]; 1 where δ is 0.
    """
    largest = float(np.abs(difference).max())
    factor = 1.0
    if largest >= 1e-9:  # of a difference as small as rounding there is nothing to be seen
        wanted = 0.5 / largest
        power = 10.0 ** math.floor(math.log10(wanted))
        factor = max((step * power for step in (1, 2, 5) if step * power <= wanted), default=power)
    return 0.5 + factor * difference, factor


def outside(image: np.ndarray) -> int:
    """How many values clipping to [0, 1] changes by more than half a grey level of 255."""
    return int((np.abs(np.clip(image, 0, 1) - image) > 0.5 / 255).sum())
