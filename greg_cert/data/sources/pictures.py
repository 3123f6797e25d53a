"""Random crops of the pictures that lie inside the installed scikit-image and scikit-learn.

They are read from the packages' folders, never through `skimage.data`, which may download. No
picture is in two of the sources: a model trained on one is tested on the others.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from greg_cert.data.reject import data_error
from greg_cert.data.sources.base import DrawnSource

if TYPE_CHECKING:
    from torch import Tensor

_FOLDER = {"skimage": "data", "sklearn": "datasets/images"}


class _PictureSource(DrawnSource):
    pictures: ClassVar[tuple[str, ...]]

    def draw(self, shape: tuple[int, int, int, int], *, field: str) -> Tensor:
        """See `DrawnSource`."""
        from greg_cert.data.files.decode import decode_image
        from greg_cert.data.sources.crops import random_crops

        n, channels, size, _ = shape
        pictures = [decode_image(bundled_file(p, field=field), field=field) for p in self.pictures]
        try:
            return random_crops(pictures, n=n, size=size, channels=channels, seed=self.seed)
        except ValueError as error:
            raise data_error(f"{field}.n", "that many varied crops to exist", n) from error

    def holds(self) -> frozenset[str]:
        """See `DataSource`."""
        return frozenset(self.pictures)


class PhotographsSource(_PictureSource):
    """Random crops of the photographs that scikit-image and scikit-learn bring with them."""

    source: Literal["photographs"] = "photographs"
    pictures = (
        "skimage/astronaut.png",
        "skimage/camera.png",
        "skimage/cell.png",
        "skimage/chelsea.png",
        "skimage/clock_motion.png",
        "skimage/coffee.png",
        "skimage/coins.png",
        "skimage/hubble_deep_field.jpg",
        "skimage/ihc.png",
        "skimage/microaneurysms.png",
        "skimage/moon.png",
        "skimage/motorcycle_left.png",
        "skimage/retina.jpg",
        "skimage/rocket.jpg",
        "sklearn/china.jpg",
        "sklearn/flower.jpg",
    )


class TexturesSource(_PictureSource):
    """Random crops of scikit-image's brick, grass and gravel."""

    source: Literal["textures"] = "textures"
    pictures = ("skimage/brick.png", "skimage/grass.png", "skimage/gravel.png")


class TextSource(_PictureSource):
    """Random crops of scikit-image's scanned page and photographed text."""

    source: Literal["text"] = "text"
    pictures = ("skimage/page.png", "skimage/text.png")


def bundled_file(name: str, *, field: str) -> Path:
    """Where a bundled file such as ``skimage/coins.png`` lies on this machine.

    Raises:
        DataError: The installed package does not contain it.
    """
    package, file = name.split("/")
    spec = find_spec(package)
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    for root in roots:
        path = Path(root) / _FOLDER[package] / file
        if path.is_file():
            return path
    found = f"{package}, installed in {roots[0]}, without it" if roots else f"no {package} at all"
    raise data_error(
        f"{field}.source",
        f"the file {file} inside the installed package {package}",
        found,
        hint="Reinstall the package, or choose another source",
    )
