"""From a configuration to checked data: every source read, resized, compared and split."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.data.archives import close_archives
from greg_cert.data.disjoint import check_disjoint
from greg_cert.data.duplicates import without_shared
from greg_cert.data.gather import pick
from greg_cert.data.reject import data_error
from greg_cert.data.schema import DataConfig
from greg_cert.data.sources import load_labelled, load_unlabelled
from greg_cert.data.splits import stratified_split
from greg_cert.data.types import DataSplits, Images, ImageSet

MOMENTS_OF = 5000  # images on disk that stand for all of them
_CHUNK = 256


def load_data(config: DataConfig, *, field: str = "data") -> DataSplits:
    """All sets of an experiment, known to be sound and disjoint before anything is trained.

    Args:
        config: The `data` part of a configuration.
        field: What errors call that part.

    Raises:
        DataError: A source is missing, damaged, of the wrong shape or mislabelled, two sources that
            must be disjoint are not, or a class is missing from a split.
    """
    check_disjoint(config, field=field)
    try:
        return _load(config, field)
    finally:
        close_archives()  # each is opened once for all the sets in it


def _load(config: DataConfig, field: str) -> DataSplits:
    known = load_labelled(
        config.id, field=f"{field}.id", channels=config.channels, size=config.image_size
    )
    channels, size, _ = known.image_shape
    num_classes = _num_classes(known)
    indices: dict[str, Tensor]
    if config.id_test is None:
        fractions = {"calibration": config.calibration, "test": config.test}
        indices = stratified_split(
            _labels(known),
            fractions,
            num_classes=num_classes,
            seed=config.seed,
            field=f"{field}.id",
        )
        test = known.subset(indices["test"])
    else:
        test = load_labelled(config.id_test, field=f"{field}.id_test", channels=channels, size=size)
        _check_same_classes(test, known, field=f"{field}.id_test")
        fields = (f"{field}.id", f"{field}.id_test")
        kept = without_shared(known, test, fields=fields, policy=config.shared)
        fractions = {"calibration": config.calibration}
        parts = stratified_split(
            _labels(known)[kept],
            fractions,
            num_classes=num_classes,
            seed=config.seed,
            field=f"{field}.id",
        )
        indices = {name: kept[part] for name, part in parts.items()}
        indices["test"] = torch.arange(len(test))
    ood = {
        source.title: load_unlabelled(
            source, field=f"{field}.ood[{i}]", role="ood", channels=channels, size=size
        )
        for i, source in enumerate(config.ood)
    }
    train = known.subset(indices["train"])
    mean, std = _normalisation(config, train, channels, field=field)
    return DataSplits(
        train=train,
        calibration=known.subset(indices["calibration"]),
        test=test,
        aux=_load_aux(config, ood, field=field, channels=channels, size=size),
        ood=ood,
        num_classes=num_classes,
        channels=channels,
        image_size=size,
        mean=mean,
        std=std,
        indices=indices,
    )


def _load_aux(
    config: DataConfig, ood: dict[str, Images], *, field: str, channels: int, size: int
) -> Images | None:
    """The auxiliary set, without a single image of an OOD test set."""
    if config.aux is None:
        return None
    aux = load_unlabelled(
        config.aux, field=f"{field}.aux", role="aux", channels=channels, size=size
    )
    for i, images in enumerate(ood.values()):
        fields = (f"{field}.aux", f"{field}.ood[{i}]")
        aux = aux.subset(without_shared(aux, images, fields=fields, policy=config.shared))
    return aux


def _labels(images: Images) -> Tensor:
    assert images.labels is not None  # `load_labelled` saw to it
    return images.labels


def _num_classes(images: Images) -> int:
    return len(images.classes) if images.classes else int(_labels(images).max()) + 1


def _check_same_classes(test: Images, known: Images, *, field: str) -> None:
    """Refuse a test set whose classes are not those of the in-distribution set."""
    if test.classes and known.classes and test.classes != known.classes:
        odd = sorted(set(test.classes) ^ set(known.classes)) or list(test.classes)
        raise data_error(field, "the classes of the ID set", f"a difference in {odd[0]!r}")
    present = torch.unique(_labels(test))
    if len(present) != _num_classes(known) or int(present[-1]) != len(present) - 1:
        found = f"{len(present)} of them"
        raise data_error(field, f"all {_num_classes(known)} classes of the ID set", found)


def _normalisation(
    config: DataConfig, train: Images, channels: int, *, field: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: the configured ones, or those of `train`."""
    if config.mean is None or config.std is None:
        return moments(train, field=f"{field}.id")
    if len(config.mean) != channels or len(config.std) != channels:
        name = "mean" if len(config.mean) != channels else "std"
        found = len(config.mean if name == "mean" else config.std)
        raise data_error(f"{field}.{name}", f"one value a channel, {channels}", found)
    return config.mean, config.std


def moments(images: Images, *, field: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1] units.

    Of a set on disk, over those of 5,000 of its images, drawn with a fixed seed.
    """
    if not isinstance(images, ImageSet):
        images = images.subset(torch.from_numpy(pick(len(images), MOMENTS_OF, 0)))
    total = torch.zeros(images.image_shape[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    count = 0
    for start in range(0, len(images), _CHUNK):
        block = images.pixels(slice(start, start + _CHUNK)).to(torch.float64)
        total += block.sum(dim=(0, 2, 3))
        squares += block.square().sum(dim=(0, 2, 3))
        count += len(block) * block.shape[2] * block.shape[3]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    if float(std.min()) < 1e-6:
        channel = int(std.argmin())
        found = f"channel {channel} constant at {float(mean[channel]):g}"
        raise data_error(field, "training images that vary in every channel", found)
    return tuple(mean.tolist()), tuple(std.tolist())
