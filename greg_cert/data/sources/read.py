"""Any source of the configuration, read and brought to the size that is asked for."""

from __future__ import annotations

from typing import Literal, assert_never

from greg_cert.data.files.folders import load_folder
from greg_cert.data.gather import pick
from greg_cert.data.geometry import centre_square, conform
from greg_cert.data.labels import limited_labels
from greg_cert.data.scale import tell_if_dark
from greg_cert.data.schema import (
    ArraySource,
    DigitsSource,
    FacesSource,
    FolderSource,
    GaussianSource,
    LabelledSource,
    PhotographsSource,
    Source,
    TextSource,
    TexturesSource,
    TorchvisionSource,
    UniformSource,
)
from greg_cert.data.sources.arrays import load_array
from greg_cert.data.sources.bundled import load_crops, load_digits_set, load_faces
from greg_cert.data.sources.noise import gaussian_noise, uniform_noise
from greg_cert.data.sources.torchvision_sets import load_torchvision
from greg_cert.data.types import Images, ImageSet

_LOOKED_AT = 64  # images on disk
DRAWN = {"aux": 10_000, "ood": 500}  # how many images are drawn where `n` is not given


def load_labelled(
    source: LabelledSource, *, field: str, channels: int | None, size: int | None
) -> Images:
    """An in-distribution set with its labels; None keeps the source's own channels or size."""
    images: Images
    if isinstance(source, ArraySource):
        images = load_array(source, field=field, labelled=True)
    elif isinstance(source, FolderSource):
        images = load_folder(source, field=field, labelled=True, channels=channels, size=size)
    elif isinstance(source, TorchvisionSource):
        images = load_torchvision(source, field=field, labelled=True, channels=channels, size=size)
    else:
        digits = load_digits_set(source.title)
        chosen = pick(len(digits), source.limit, source.seed)
        images = digits.subset(chosen.tolist())
        if digits.labels is not None:
            limited_labels(digits.labels, chosen, field=field)
    _tell(images, source, field)
    return _conformed(images, channels, size)


def load_unlabelled(
    source: Source, *, field: str, role: Literal["aux", "ood"], channels: int, size: int
) -> Images:
    """A set of outliers, without labels, of the channels and size given."""
    title = source.title
    images: Images
    if isinstance(source, ArraySource):
        images = load_array(source, field=field, labelled=False, channels=channels, size=size)
    elif isinstance(source, FolderSource):
        images = load_folder(source, field=field, labelled=False, channels=channels, size=size)
    elif isinstance(source, TorchvisionSource):
        images = load_torchvision(source, field=field, labelled=False, channels=channels, size=size)
    elif isinstance(source, DigitsSource):
        digits = load_digits_set(title)
        images = _limited(ImageSet(title, digits.images), source)
    elif isinstance(source, FacesSource):
        images = _limited(load_faces(title, field=field), source)
    else:
        n, seed = source.n or DRAWN[role], source.seed
        if isinstance(source, PhotographsSource | TexturesSource | TextSource):
            images = load_crops(
                source.source, title, field=field, n=n, channels=channels, size=size, seed=seed
            )
        elif isinstance(source, UniformSource):
            images = ImageSet(title, uniform_noise(n, channels=channels, size=size, seed=seed))
        elif isinstance(source, GaussianSource):
            images = ImageSet(title, gaussian_noise(n, channels=channels, size=size, seed=seed))
        else:
            assert_never(source)
        images = _limited(images, source)
    _tell(images, source, field)
    return _conformed(images, channels, size)


def _limited(images: Images, source: Source) -> Images:
    return images.subset(pick(len(images), source.limit, source.seed).tolist())


def _tell(images: Images, source: Source, field: str) -> None:
    """Warn of files that may not hold what they seem to; of those on disk, a few are looked at."""
    if isinstance(source, ArraySource) and source.scale == "auto":
        field, remedy = f"{field}.images", "Set scale beside them to what does (1, 255, ...)"
    elif isinstance(source, FolderSource):
        field, remedy = f"{field}.path", "Are these labels or masks, saved as pictures?"
    else:
        return
    few = None if isinstance(images, ImageSet) else pick(len(images), _LOOKED_AT, 0).tolist()
    tell_if_dark(images.stored(few), field=field, remedy=remedy)


def _conformed(images: Images, channels: int | None, size: int | None) -> Images:
    """The set at that size; what stays on disk is brought to it as it is read."""
    if not isinstance(images, ImageSet):
        return images
    own_channels, own_size = images.images.shape[1], centre_square(images.images).shape[-1]
    pixels = conform(images.images, channels=channels or own_channels, size=size or own_size)
    return ImageSet(images.name, pixels, images.labels, images.classes, images.files)
