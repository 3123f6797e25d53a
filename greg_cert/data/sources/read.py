"""Any source of the configuration, read and brought to what is asked for."""

from __future__ import annotations

from greg_cert.data.geometry import centre_square, conform
from greg_cert.data.labels import sound_labels
from greg_cert.data.reject import data_error
from greg_cert.data.sources.base import DataSource, Request
from greg_cert.data.splits import pick
from greg_cert.data.types import Images, ImageSet


def read_source(source: DataSource, request: Request) -> Images:
    """The images that a source is asked for, with labels where it is to have them.

    What stays on disk is brought to the size that is asked for as it is read.

    Raises:
        DataError: as `DataSource.load`, or labels are missing or unsound.
    """
    field, images = request.field, source.load(request)
    chosen = pick(len(images), source.limit, source.seed)
    if request.labelled:
        if images.labels is None:
            raise data_error(field, "a source with labels", source.source)
        sound_labels(images.labels.numpy(), len(images), chosen, place=field, field=field)
    if len(chosen) < len(images):
        images = images.subset(chosen.tolist())
    if not isinstance(images, ImageSet):
        return images
    pixels, labels, classes = images.images, images.labels, images.classes
    pixels = conform(
        pixels,
        channels=request.channels or pixels.shape[1],
        size=request.size or centre_square(pixels).shape[-1],
    )
    if not request.labelled:
        labels = classes = None
    return ImageSet(images.name, pixels, labels, classes, images.files)
