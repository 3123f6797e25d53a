"""The pictures that lie inside the installed scikit-image and scikit-learn.

They are read from the packages' folders, never through `skimage.data`, which may download.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from greg_cert.data.files.decode import decode_image
from greg_cert.data.reject import data_error

_FOLDER = {"skimage": "data", "sklearn": "datasets/images"}

# No picture is in two groups: a model trained on one is tested on the others.
GROUPS: dict[str, tuple[str, ...]] = {
    "photographs": (
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
    ),
    "textures": ("skimage/brick.png", "skimage/grass.png", "skimage/gravel.png"),
    "text": ("skimage/page.png", "skimage/text.png"),
    "faces": ("skimage/lfw_subset.npy",),
}


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


def read_pictures(group: str, *, field: str) -> list[Tensor]:
    """The pictures of a group at full resolution: uint8 (1 or 3, H, W) each."""
    return [decode_image(bundled_file(n, field=field), field=field) for n in GROUPS[group]]
