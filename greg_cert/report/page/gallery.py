"""The pictures of one report: sample images and the attacks on them, as arrays to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, as_floats, read_pictures
from greg_cert.certificates.results import Results
from greg_cert.report.page.images import Pictures, checked, pair_of


@dataclass(frozen=True)
class Shown:
    """What is shown of one sample.

    Attributes:
        clean: floats in [0, 1], (H, W) or (H, W, 3).
        attacked: the adversarial image, which may leave [0, 1]; None where there is none.
        searched: whether an attack is known to have been looked for.
        radius: distance of the two images in the table's norm, where it is known.
        score: score of the adversarial image, where it is known.
        predicted: class of the adversarial image, where it is known.
    """

    clean: np.ndarray
    attacked: np.ndarray | None = None
    searched: bool = False
    radius: float | None = None
    score: float | None = None
    predicted: int | None = None


Key: TypeAlias = tuple[str, str, int]
"""Run, OOD test set (empty for an ID sample) and sample index."""

Gallery: TypeAlias = Mapping[Key, Shown]


def gallery_of(images: Pictures) -> dict[Key, Shown]:
    """Images that a caller gave, by (run, index), of ID samples.

    Raises:
        DataError: an image has the wrong shape, type or values.
    """
    gallery = {}
    for (run, index), picture in images.items():
        where = str((run, index))
        clean, attacked = pair_of(picture)
        gallery[run, "", index] = Shown(
            checked(clean, where), None if attacked is None else checked(attacked, where)
        )
    return gallery


def read_gallery(results: Results) -> dict[Key, Shown]:
    """The pictures in the results' folder that are of the very samples in the tables.

    A picture whose threshold, score or radius is not its row's is left out: a verification that was
    killed may leave pictures of earlier results.

    Raises:
        RunError: the file is damaged.
    """
    pictures = read_pictures(results.folder / PICTURES)
    rows = {} if not pictures else _numbers(results)
    return {p.key: _shown(p) for p in pictures if p.key in rows and p.fits(*rows[p.key])}


def _numbers(results: Results) -> dict[Key, tuple[float, float, float]]:
    """Threshold, score and attack radius of every row."""
    frames = [results.frame.assign(dataset="")]
    if results.ood is not None:
        frames.append(results.ood)
    columns = ["run", "dataset", "index", "threshold", "score", "radius_attack"]
    rows = pd.concat([frame[columns] for frame in frames], ignore_index=True)
    return {
        (str(run), str(dataset), int(index)): (float(gamma), float(score), float(radius))
        for run, dataset, index, gamma, score, radius in rows.itertuples(index=False, name=None)
    }


def _shown(picture: SamplePicture) -> Shown:
    clean = _display(as_floats(picture.clean).astype(np.float64))
    if picture.difference is None:
        return Shown(clean, searched=True)
    return Shown(
        clean,
        clean + _display(picture.difference.astype(np.float64)),
        True,
        picture.radius,
        picture.attacked_score,
        picture.attacked_class,
    )


def _display(array: np.ndarray) -> np.ndarray:
    """Channels last, or none where there is one."""
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
