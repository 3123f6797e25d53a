"""Standard sets in the files that torchvision knows, downloaded only when asked to.

torchvision reads CIFAR by unpickling, but only files whose MD5 it has checked against its own list;
that check is never switched off here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from greg_cert.data.gather import pick, stack_images
from greg_cert.data.labels import check_labels, limited_labels
from greg_cert.data.reject import data_error
from greg_cert.data.schema import TorchvisionSource
from greg_cert.data.types import ImageSet

# What each set's files are called below `root`, and where to get them by hand.
HOME = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "MNIST": "MNIST",
    "FashionMNIST": "FashionMNIST",
    "SVHN": "{split}_32x32.mat",
    "DTD": "dtd",
}
_PAGE = {
    "CIFAR10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "CIFAR100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "MNIST": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "FashionMNIST": "https://github.com/zalandoresearch/fashion-mnist",
    "SVHN": "http://ufldl.stanford.edu/housenumbers/",
    "DTD": "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
}


def home(source: TorchvisionSource) -> Path:
    """The file or folder that torchvision reads the set from."""
    return source.root.expanduser() / HOME[source.dataset].format(split=source.split)


def load_torchvision(
    source: TorchvisionSource,
    *,
    field: str,
    labelled: bool,
    channels: int | None,
    size: int | None,
) -> ImageSet:
    """A torchvision set; DTD's photographs are resized as they are read, the rest keep their size.

    Raises:
        DataError: The files are missing, damaged or changed, or could not be downloaded.
    """
    section, field = field, f"{field}.root"
    dataset = _open(source, field=field)
    labels = np.asarray(_labels(dataset))
    targets = check_labels(labels, len(dataset), field=field) if labelled else None
    chosen = pick(len(dataset), source.limit, source.seed)
    if source.dataset == "DTD":
        photographs = _photographs(dataset, chosen.tolist(), field=field)
        images = stack_images(photographs, field=field, channels=channels, size=size)
    else:
        images = torch.as_tensor(np.asarray(dataset.data)[chosen])
        if images.ndim == 3:  # MNIST's (N, H, W)
            images = images[:, None]
        elif images.shape[-1] == 3:  # CIFAR's (N, H, W, 3); SVHN is (N, 3, H, W)
            images = images.permute(0, 3, 1, 2)
        images = images.contiguous()
    if targets is None:
        return ImageSet(source.title, images)
    classes = tuple(getattr(dataset, "classes", map(str, range(10))))  # SVHN has digits
    if len(classes) != int(targets.max()) + 1:
        found = f"labels up to {int(targets.max())}"
        raise data_error(field, f"all {len(classes)} classes of {source.dataset}", found)
    kept = limited_labels(targets, chosen, field=section)
    return ImageSet(source.title, images, kept, classes)


def _open(source: TorchvisionSource, *, field: str) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, source.dataset)
    by_name = source.dataset in {"SVHN", "DTD"}
    split = {"split": source.split} if by_name else {"train": source.split == "train"}
    try:
        with warnings.catch_warnings():
            # CIFAR's pickles predate numpy's present rules for dtypes.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return kind(source.root.expanduser(), download=source.download, **split)
    except Exception as error:  # parsers, sockets and archives each raise their own
        remedy = (
            f"Check the connection, or get it from {_PAGE[source.dataset]} by hand"
            if source.download
            else f"Set download: true beside it, or get it from {_PAGE[source.dataset]}"
        )
        raise data_error(
            field,
            f"{source.dataset}'s {source.split} files, unchanged, at {str(home(source))!r}",
            f"{type(error).__name__}: {error}",
            hint=remedy,
        ) from error


def _labels(dataset: Any) -> Any:
    if hasattr(dataset, "targets"):  # MNIST, CIFAR
        return dataset.targets
    if hasattr(dataset, "labels"):  # SVHN
        return dataset.labels
    return dataset._labels  # DTD; its public way would decode every image


def _photographs(dataset: Any, chosen: list[int], *, field: str) -> Iterator[tuple[str, Tensor]]:
    for index in chosen:
        try:
            image, _ = dataset[index]
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except Exception as error:
            raise data_error(
                field,
                "complete, readable image files",
                f"image {index} ({type(error).__name__}: {error})",
            ) from error
        yield f"image {index}", pixels
