"""`pictures.npz`: images of some verified samples, with the nearest perturbation found of each.

One numpy archive, readable without pickle, with a CRC-32 of each array by which damage is found; N
samples, images of C channels:

| array | type | holds |
| --- | --- | --- |
| `schema` | int64 () | 1 |
| `run` | text (N,) | name of the run |
| `dataset` | text (N,) | name of the OOD test set; empty for a sample of the ID test split |
| `index` | int64 (N,) | as in the table of certificates |
| `threshold`, `score` | float64 (N,) | γ, and S(x) of the clean sample |
| `clean` | uint8 or float32 (N, C, H, W) | raw pixels: grey levels, or in [0, 1] |
| `found` | bool (N,) | whether the attack crossed γ within the radius it searched |
| `difference` | float32 (N, C, H, W) | δ, in units of [0, 1]; 0 where nothing was found |
| `radius` | float64 (N,) | ‖δ‖ in the norm of the table; inf where nothing was found |
| `attacked_score` | float64 (N,) | S(x + δ); NaN where nothing was found |
| `attacked_class` | int64 (N,) | class predicted at x + δ; −1 where nothing was found |

x + δ is not clipped: it may leave [0, 1], as the balls do.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from greg_cert.errors import RunError
from greg_cert.files import plain_file, write_atomic

LARGEST = 2**28
"""Bytes that the arrays may take together; a file of more is not written, and not read."""

_SCHEMA = 1
_KINDS = {
    "run": "str",
    "dataset": "str",
    "index": "int64",
    "threshold": "float64",
    "score": "float64",
    "found": "bool",
    "radius": "float64",
    "attacked_score": "float64",
    "attacked_class": "int64",
}
_NAMES = ("schema", *_KINDS, "clean", "difference")


@dataclass(frozen=True)
class SamplePicture:
    """One sample's clean image and the nearest perturbation that an attack found.

    The fields are a sample's entries of the arrays in the table above.
    """

    run: str
    dataset: str
    index: int
    threshold: float
    score: float
    clean: np.ndarray  # (C, H, W)
    difference: np.ndarray | None  # (C, H, W); None where no attack succeeded
    radius: float
    attacked_score: float
    attacked_class: int

    @property
    def found(self) -> bool:
        """Whether an attack succeeded."""
        return self.difference is not None

    @property
    def key(self) -> tuple[str, str, int]:
        """Run, OOD test set and index."""
        return self.run, self.dataset, self.index

    def fits(self, threshold: float, score: float, radius: float) -> bool:
        """Whether it is of the certificate with these numbers: of this sample under this network.

        γ and the score to the last digits; the attack's radius to a millionth, infinite or not.
        """
        return (
            math.isclose(self.threshold, threshold, rel_tol=1e-12)
            and math.isclose(self.score, score, rel_tol=1e-9)
            and math.isclose(self.radius, radius, rel_tol=1e-6)
        )


def most_pictures(image_shape: tuple[int, ...]) -> int:
    """How many samples of this shape a file may hold."""
    return LARGEST // (2 * 8 * math.prod(image_shape))


def write_pictures(path: Path, pictures: Sequence[SamplePicture]) -> Path:
    """The file, written whole or not at all; equal pictures give equal bytes.

    Raises:
        RunError: where it cannot be written.
    """
    clean = [p.clean for p in pictures]
    if len({image.dtype for image in clean}) > 1:
        clean = [as_floats(image) for image in clean]
    arrays: dict[str, np.ndarray] = {
        "schema": np.array(_SCHEMA, dtype=np.int64),
        **{name: np.array([getattr(p, name) for p in pictures], k) for name, k in _KINDS.items()},
        "clean": np.stack(clean),
        "difference": np.stack(
            [
                np.zeros(p.clean.shape, np.float32) if p.difference is None else p.difference
                for p in pictures
            ]
        ).astype(np.float32),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    try:
        return write_atomic(path, stream.getvalue())
    except OSError as error:
        raise RunError(f"out: cannot write {path}: {error}") from error


def as_floats(image: np.ndarray) -> np.ndarray:
    """A clean image as float32 in [0, 1]."""
    scaled = image.astype(np.float32)
    return scaled / np.float32(255) if image.dtype == np.uint8 else scaled


def read_pictures(path: Path) -> list[SamplePicture]:
    """The checked contents of such a file; nothing where there is none.

    Raises:
        RunError: the file is damaged or too large, lacks an array, or an array holds what it
            cannot hold; the message names the file and the array.
    """
    if not path.exists():
        return []
    try:
        with zipfile.ZipFile(plain_file(path)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST:
            raise RunError(f"{path}: expected at most {LARGEST} bytes of arrays, but got {size}")
        with np.load(path, allow_pickle=False) as archive:
            for name in _NAMES:
                if name not in archive:
                    raise RunError(f"{path}: array {name}: missing")
            arrays = {name: archive[name] for name in _NAMES}
    except RunError:
        raise
    except Exception as error:  # zipfile and numpy raise anything where headers are damaged
        raise RunError(
            f"{path}: cannot be read as numpy arrays, perhaps truncated ({error!s:.200})"
        ) from None
    _check(path, arrays)
    found = arrays["found"]
    plain = {name: arrays[name].tolist() for name in _KINDS if name != "found"}
    return [
        SamplePicture(
            **{name: values[k] for name, values in plain.items()},
            clean=arrays["clean"][k],
            difference=arrays["difference"][k] if found[k] else None,
        )
        for k in range(len(found))
    ]


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises `RunError` for arrays of other types, shapes or values than the file's own."""

    def refuse(name: str, wanted: str, got: object) -> RunError:
        return RunError(f"{path}: array {name}: expected {wanted}, but got {got}")

    if arrays["schema"].shape != () or arrays["schema"] != _SCHEMA:
        raise refuse("schema", str(_SCHEMA), arrays["schema"])
    count = arrays["found"].shape
    for name, kind in _KINDS.items():
        array = arrays[name]
        right = array.dtype.kind == "U" if kind == "str" else array.dtype == kind
        if not right or array.ndim != 1 or array.shape != count:
            raise refuse(name, f"{kind} of shape ({'N' if not count else count[0]},)", _sort(array))
    clean, difference = arrays["clean"], arrays["difference"]
    if clean.dtype not in (np.uint8, np.float32):
        raise refuse("clean", "uint8 or float32", clean.dtype)
    if clean.ndim != 4 or clean.shape[0] != count[0] or clean.shape[1] not in (1, 3):
        raise refuse("clean", f"shape ({count[0]}, 1 or 3, H, W)", clean.shape)
    if difference.dtype != np.float32 or difference.shape != clean.shape:
        raise refuse("difference", f"float32 of shape {clean.shape}", _sort(difference))
    if clean.dtype == np.float32 and not ((clean >= 0) & (clean <= 1)).all():
        raise refuse("clean", "pixels in [0, 1]", "others")
    for name in ("difference", "threshold", "score"):
        if not np.isfinite(arrays[name]).all():
            raise refuse(name, "finite values", "others")
    found = arrays["found"]
    for name, there in (
        ("radius", np.isfinite(arrays["radius"]) & (arrays["radius"] >= 0)),
        ("attacked_score", np.isfinite(arrays["attacked_score"])),
        ("attacked_class", arrays["attacked_class"] >= 0),
    ):
        if (there != found).any():
            raise refuse(name, "a value exactly where `found` says so", "others")


def _sort(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
