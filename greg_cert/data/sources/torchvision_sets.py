"""Standard sets in the files that torchvision knows, downloaded only when asked to.

torchvision reads CIFAR by unpickling, but only files whose MD5 it has checked against its own list;
that check is never switched off here. Of sets of photographs it is asked only for the files' names.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from greg_cert.data.reject import data_error
from greg_cert.data.sources.base import Crop, DataSource, Keep, Request
from greg_cert.files import user_path

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from greg_cert.data.types import Images


@dataclass(frozen=True)
class _Known:
    """How torchvision keeps a set.

    Attributes:
        home: What its files are called below `root`.
        page: Where to get them by hand.
        photographs: Path and label of each image file, where it is no array of images.
        splits: What torchvision calls our `train` and `test`; None where it takes `train=`.
        classes: How many there are, where torchvision has no names for them.
        whole: What it calls all the splits, of sets of photographs that lie in one place.
    """

    home: str
    page: str
    photographs: Callable[[Any], Iterable[tuple[str, int]]] | None = None
    splits: dict[str, str] | None = None
    more: tuple[tuple[str, Any], ...] = ()
    classes: int = 10
    whole: tuple[str, ...] = ()


def _listed(dataset: Any) -> Iterable[tuple[str, int]]:
    return zip(dataset._image_files, dataset._labels, strict=True)


_SAME = {"train": "train", "test": "test"}
_KNOWN = {
    "CIFAR10": _Known(
        "cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ),
    "CIFAR100": _Known(
        "cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    ),
    "DTD": _Known(
        "dtd",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        _listed,
        _SAME,
        whole=("train", "val", "test"),
    ),
    "EMNIST": _Known(
        "EMNIST",
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        more=(("split", "letters"),),
    ),
    "FashionMNIST": _Known("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
    "Food101": _Known(
        "food-101", "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", _listed, _SAME
    ),
    "GTSRB": _Known(
        "gtsrb",
        "https://benchmark.ini.rub.de/gtsrb_dataset.html",
        lambda dataset: dataset._samples,
        _SAME,
        classes=43,
    ),
    "KMNIST": _Known("KMNIST", "http://codh.rois.ac.jp/kmnist/"),
    "MNIST": _Known("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "Places365": _Known(
        "{split}_256",
        "http://places2.csail.mit.edu/download.html",
        lambda dataset: dataset.imgs,
        {"train": "train-standard", "test": "val"},
        (("small", True),),
    ),
    "STL10": _Known("stl10_binary", "https://cs.stanford.edu/~acoates/stl10/", splits=_SAME),
    "SVHN": _Known("{split}_32x32.mat", "http://ufldl.stanford.edu/housenumbers/", splits=_SAME),
}
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(_KNOWN)]


class TorchvisionSource(DataSource):
    """A set that torchvision reads from `root`, and downloads on request."""

    labelled: ClassVar[bool] = True

    source: Literal["torchvision"] = "torchvision"
    dataset: Name
    """Its name in torchvision. EMNIST is its letters, Places365 its 256x256 images (test: the
    validation split).
    """
    root: Path
    """Folder that holds, or is to hold, its files."""
    split: Literal["train", "test", "all"]
    """Which of its images; `all` is for DTD, whose three parts are one set of textures."""
    download: bool = False
    """Whether it may be fetched."""
    crop: Crop = 1.0
    """As for folders; only for the sets of photographs (DTD, Food101, GTSRB, Places365)."""
    keep: Keep = "auto"
    """As for folders; only for the sets of photographs."""

    @model_validator(mode="after")
    def _has_the_split(self) -> Self:
        if self.split == "all" and not _KNOWN[self.dataset].whole:
            sets = ", ".join(name for name, known in _KNOWN.items() if known.whole)
            raise ValueError(f"expected split all for {sets} alone, but got {self.dataset}")
        return self

    def _default_title(self) -> str:
        return self.dataset.lower()

    def home(self) -> Path:
        """The file or folder that torchvision reads the set from."""
        root = user_path(self.root)
        if self.dataset == "Places365" and self.split == "train":
            return root / "data_256_standard"
        known = _KNOWN[self.dataset]
        return root / known.home.format(split=(known.splits or _SAME).get(self.split, self.split))

    def place(self) -> Path:
        """See `DataSource`."""
        return self.home().resolve()

    def holds(self) -> frozenset[str]:
        """See `DataSource`; two splits lie in one place."""
        parts = _KNOWN[self.dataset].whole if self.split == "all" else (self.split,)
        return frozenset(f"{self.dataset}'s {part} split" for part in parts)

    def load(self, request: Request) -> Images:
        """The set; photographs are resized as they are read, the rest keep their size.

        Raises:
            DataError: The files are missing, damaged or changed, or could not be downloaded.
        """
        import numpy as np

        from greg_cert.data.files.encoded import Files
        from greg_cert.data.files.file_sets import load_files
        from greg_cert.data.files.listing import Listing
        from greg_cert.data.labels import sound_labels
        from greg_cert.data.splits import pick
        from greg_cert.data.types import ImageSet

        known, field = _KNOWN[self.dataset], f"{request.field}.root"
        parts = _open(self, field=field)
        dataset = parts[0]
        if known.photographs is None and (self.keep == "disk" or self.crop != 1):
            name = "keep: disk" if self.keep == "disk" else f"crop: {self.crop}"
            sets = ", ".join(name for name, k in _KNOWN.items() if k.photographs)
            raise data_error(request.field, f"that only with sets of photographs ({sets})", name)
        names: list[str] = []
        if known.photographs is not None:
            root = str(user_path(self.root))
            pairs = [pair for part in parts for pair in known.photographs(part)]
            names = [os.path.relpath(path, root).replace(os.sep, "/") for path, _ in pairs]
            labels = np.array([label for _, label in pairs], dtype=np.int64)
        else:
            labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
        classes = tuple(getattr(dataset, "classes", None) or map(str, range(known.classes)))
        if self.dataset == "EMNIST":  # its letters count from 1
            labels, classes = labels.astype(np.int64) - 1, classes[1:]
        count = sum(map(len, parts))
        chosen = pick(count, self.limit, self.seed)
        kept = None
        if request.labelled:
            kept = sound_labels(labels, count, chosen, place=field, field=request.field)
            if len(classes) != int(labels.max()) + 1:
                found = f"labels up to {int(labels.max())}"
                raise data_error(field, f"all {len(classes)} classes of {self.dataset}", found)
        if names:
            listing = Listing(Files(root, names), np.arange(len(names)), labels, classes)
            return load_files(listing, self, request, place=field, crop=self.crop, keep=self.keep)
        images = _array(dataset, self, chosen)
        return ImageSet(self.title, images, kept, classes if request.labelled else None)


def _open(source: TorchvisionSource, *, field: str) -> list[Any]:
    """The sets of torchvision with these images: one, or all the parts of a whole."""
    import numpy as np
    from torchvision import datasets

    known = _KNOWN[source.dataset]
    splits: list[dict[str, Any]] = [{"train": source.split == "train"}]
    if source.split == "all":
        splits = [{"split": part} for part in known.whole]
    elif known.splits is not None:
        splits = [{"split": known.splits[source.split]}]
    try:
        with warnings.catch_warnings():
            # CIFAR's pickles predate numpy's present rules for dtypes.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            kind = getattr(datasets, source.dataset)
            root, more = user_path(source.root), dict(known.more)
            return [kind(root, download=source.download, **split, **more) for split in splits]
    except Exception as error:  # parsers, sockets and archives each raise their own
        remedy = (
            f"Check the connection, or get it from {known.page} by hand"
            if source.download
            else f"Set download: true beside it, or get it from {known.page}"
        )
        raise data_error(
            field,
            f"{source.dataset}'s {source.split} files, unchanged, at {str(source.home())!r}",
            f"{type(error).__name__}: {error}",
            hint=remedy,
        ) from error


def _array(dataset: Any, source: TorchvisionSource, chosen: NDArray[Any]) -> Tensor:
    """The chosen images, uint8 (N, C, H, W)."""
    import numpy as np
    import torch

    images = torch.as_tensor(np.asarray(dataset.data)[chosen])
    if source.dataset == "EMNIST":
        images = images.mT  # it is stored by columns
    if images.ndim == 3:  # MNIST's (N, H, W)
        images = images[:, None]
    elif images.shape[-1] == 3:  # CIFAR's (N, H, W, 3); SVHN and STL10 are (N, 3, H, W)
        images = images.permute(0, 3, 1, 2)
    return images.contiguous()
