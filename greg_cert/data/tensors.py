"""Splits from tensors that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from greg_cert.data.duplicates import Content, apart
from greg_cert.data.load import moments
from greg_cert.data.reject import data_error
from greg_cert.data.scale import tell_if_dark, without_rounding
from greg_cert.data.splits import stratified_split
from greg_cert.data.types import DataSplits, ImageSet
from greg_cert.errors import DataError

Labelled = tuple[Tensor, Tensor]


def splits_from_tensors(
    train: Labelled,
    test: Labelled,
    ood: Mapping[str, Tensor],
    *,
    calibration: Labelled | float = 0.15,
    seed: int = 0,
) -> DataSplits:
    """Data of an evaluation, from images (N, C, H, W) and labels (N,).

    Args:
        train: ID images, uint8 or floats in [0, 1], and their labels; detectors are fitted on them.
        test: ID images to report on.
        ood: OOD test sets by name.
        calibration: ID images that set the threshold, or the share of `train` that is put aside
            for it.
        seed: of that share.

    Raises:
        DataError: images of another shape, type or range, labels that do not fit, or an image that
            two of the sets have in common (OOD sets among themselves may).
    """
    known = _set("train", *train)
    labels = train[1].to(torch.int64)
    num_classes = int(labels.max()) + 1
    if isinstance(calibration, float):
        share = {"calibration": calibration}
        parts = stratified_split(labels, share, num_classes=num_classes, seed=seed, field="train")
        fit, put_aside = known.subset(parts["train"]), known.subset(parts["calibration"])
    else:
        fit, put_aside = known, _set("calibration", *calibration)
        parts = {"train": torch.arange(len(fit)), "calibration": torch.arange(len(put_aside))}
    tested = _set("test", *test)
    outliers = {name: ImageSet(name, _stored(images)) for name, images in ood.items()}
    for images in (put_aside, tested, *outliers.values()):
        if images.image_shape != known.image_shape:
            expected = f"images of shape {known.image_shape}"
            raise data_error(images.name, expected, str(images.image_shape))
        if images.labels is not None and int(images.labels.max()) >= num_classes:
            found = str(int(images.labels.max()))
            raise data_error(images.name, f"labels below {num_classes}", found)
    for images in (known, put_aside, tested, *outliers.values()):
        tell_if_dark(images, field=images.name, remedy="Pass floats in [0, 1] instead")
    known_by: list[tuple[str, Content]] = []
    for name, images in (("test", tested), ("calibration", put_aside), ("train", fit)):
        known_by.append((name, apart(images, known_by, field=name, policy="never")))
    for name, images in outliers.items():
        apart(images, known_by, field=name, policy="never")
    mean, std = moments(fit, field="train")
    channels, height, width = known.image_shape
    if height != width:
        raise data_error("train", "square images", f"{height}x{width}")
    return DataSplits(
        train=fit,
        calibration=put_aside,
        test=tested,
        aux=None,
        ood=dict(outliers),
        num_classes=num_classes,
        channels=channels,
        image_size=height,
        mean=mean,
        std=std,
        indices={**parts, "test": torch.arange(len(tested))},
    )


def _set(name: str, images: Tensor, labels: Tensor) -> ImageSet:
    if labels.dtype.is_floating_point or labels.ndim != 1 or (len(labels) and labels.min() < 0):
        raise DataError(f"{name}: expected labels (N,), integers >= 0, but got {labels.dtype}")
    return ImageSet(name, _stored(images), labels.to(torch.int64))


def _stored(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    return torch.from_numpy(without_rounding(images.detach().cpu().float().numpy(), 1.0))
