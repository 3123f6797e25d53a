"""From a configuration to checked data: every source read, resized, compared and split."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from greg_cert.data.disjoint import check_disjoint
from greg_cert.data.duplicates import Content, apart, without_shared
from greg_cert.data.files.archives import close_archives
from greg_cert.data.reject import data_error
from greg_cert.data.schema import DataConfig
from greg_cert.data.sources.base import Request
from greg_cert.data.sources.read import read_source
from greg_cert.data.splits import pick, stratified_split
from greg_cert.data.types import DataSplits, Images, ImageSet, unit_range
from greg_cert.data.withheld import Withheld

MOMENTS_OF = 5000  # images on disk that stand for all of them
_CHUNK = 256


def load_data(config: DataConfig, *, field: str = "data", tests: bool = True) -> DataSplits:
    """All sets of an experiment, known to be sound and disjoint before anything is trained.

    Without `tests` there are no OOD test sets, and the test split is `Withheld`. Sets that are for
    tests alone are not even read then, unless `shared: drop` takes what they hold out of others; a
    test split that is cut from `id` is, as its copies are found in training sets. `field` is what
    errors call `config`.

    Raises:
        DataError: A source is missing, damaged, of the wrong shape or mislabelled, two sources that
            must be disjoint are not, or a class is missing from a split.
    """
    check_disjoint(config, field=field)
    try:
        return _load(config, field, tests)
    finally:
        close_archives()  # each is opened once for all the sets in it


def _load(config: DataConfig, field: str, tests: bool) -> DataSplits:
    read_tests = tests or config.shared == "drop"
    known = read_source(config.id, Request(f"{field}.id", "id", config.channels, config.image_size))
    shape = channels, size, _ = known.image_shape
    content, kept = Content(known), torch.arange(len(known))
    fractions = {"calibration": config.calibration}
    tested: Content | None = None
    if config.id_test is None:
        fractions["test"] = config.test
    elif read_tests:
        name = f"{field}.id_test"
        test = read_source(config.id_test, Request(name, "id", channels, size))
        _check_same_classes(test, known, field=name)
        tested = Content(test)
        fields = (f"{field}.id", name)
        kept = without_shared(content, tested, fields=fields, policy=config.shared)
    num_classes = _num_classes(known)
    labels = _labels(known)[kept]
    parts = stratified_split(
        labels, fractions, num_classes=num_classes, seed=config.seed, field=f"{field}.id"
    )
    indices = {name: kept[part] for name, part in parts.items()}
    splits = _split_apart(content, indices, num_classes, config.shared, field=f"{field}.id")
    if config.id_test is None:
        tested = splits["test"]
    elif tested is not None:
        indices["test"] = torch.arange(len(tested.images))
    train = splits["train"].images
    of_test = f"{field}.id" if config.id_test is None else f"{field}.id_test"
    # What is in-distribution is no outlier, and what is tested on is not trained on.
    others = [(f"{field}.id", splits["train"]), (f"{field}.id", splits["calibration"])]
    if tested is not None:
        others.append((of_test, tested))
    ood: dict[str, Images] = {}
    outliers: list[tuple[str, Content]] = []
    for i, source in enumerate(config.ood if read_tests else ()):
        name = f"{field}.ood[{i}]"
        images = read_source(source, Request(name, "ood", channels, size))
        outliers.append((name, apart(images, others, field=name, policy=config.shared)))
        ood[source.title] = outliers[-1][1].images
    sets: dict[str, Images] = {}
    others = [*outliers, *others]
    for key, source in config.auxiliary().items():
        name = f"{field}.{key}"
        images = read_source(source, Request(name, "aux", channels, size))
        sets[name] = apart(images, others, field=name, policy=config.shared).images
    mean, std = _normalisation(config, train, channels, field=field)
    return DataSplits(
        train=train,
        calibration=splits["calibration"].images,
        test=Withheld("test", train.classes, shape)
        if not tests or tested is None
        else tested.images,
        aux=joined(sets) if sets else None,
        ood=ood if tests else {},
        num_classes=num_classes,
        channels=channels,
        image_size=size,
        mean=mean,
        std=std,
        indices=indices if tests else {n: i for n, i in indices.items() if n != "test"},
    )


def joined(sets: Mapping[str, Images]) -> Images:
    """Sets, each by the path of its field, as one without labels; the one where there is one.

    Raises:
        DataError: One of several stays on disk.
    """
    if len(sets) == 1:
        return next(iter(sets.values()))
    parts: list[Tensor] = []
    for field, images in sets.items():
        if not isinstance(images, ImageSet):
            raise data_error(
                field,
                "a set in memory, as it is one of several",
                "one that stays on disk",
                hint="Set keep: memory beside it",
            )
        parts.append(images.images)
    if len({part.dtype for part in parts}) > 1:
        parts = [unit_range(part) for part in parts]
    return ImageSet(", ".join(images.name for images in sets.values()), torch.cat(parts))


def _split_apart(
    known: Content, indices: dict[str, Tensor], num_classes: int, policy: str, *, field: str
) -> dict[str, Content]:
    """The splits, none with a copy of an image of one after it; `indices` lose what they lose."""
    splits: dict[str, Content] = {}
    for name in [n for n in ("test", "calibration", "train") if n in indices]:
        content = known.subset(indices[name])
        for later, other in splits.items():
            fields = (field, f"its {later} split")
            kept = without_shared(content, other, fields=fields, policy=policy)
            content, indices[name] = content.subset(kept), indices[name][kept]
        if len(torch.unique(_labels(content.images))) < num_classes:
            found = "one whose images are all copies of others"
            raise data_error(field, f"every class in the {name} split", found)
        splits[name] = content
    return splits


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
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) != channels:
            raise data_error(f"{field}.{name}", f"one value a channel, {channels}", len(values))
    return config.mean, config.std


def moments(images: Images, *, field: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1] units.

    Of a set on disk, over those of 5,000 of its images, drawn with a fixed seed.
    """
    if not isinstance(images, ImageSet):
        images = images.subset(torch.from_numpy(pick(len(images), MOMENTS_OF, 0)))
    channels, height, width = images.image_shape
    total, squares = torch.zeros((2, channels), dtype=torch.float64)
    count = len(images) * height * width
    for start in range(0, len(images), _CHUNK):
        block = images.pixels(slice(start, start + _CHUNK)).to(torch.float64)
        total += block.sum(dim=(0, 2, 3))
        squares += block.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    if float(std.min()) < 1e-6:
        channel = int(std.argmin())
        found = f"channel {channel} constant at {float(mean[channel]):g}"
        raise data_error(field, "training images that vary in every channel", found)
    return tuple(mean.tolist()), tuple(std.tolist())
