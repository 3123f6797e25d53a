"""The `data` part of a configuration: which sources play which role, and how they are split.

Only what can be judged without opening a file is judged here; `greg_cert.data.load_data` does the
rest. This module imports pydantic and nothing heavier.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from greg_cert.data.files.class_lists import CLASS_LISTS
from greg_cert.section import Section

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")

Keep = Literal["auto", "memory", "disk"]


def _bundled(value: object) -> object:
    """The names of a bundled class list where its own name is given."""
    if not isinstance(value, str):
        return value
    if value not in CLASS_LISTS:
        raise ValueError(f"expected a list of class names, or one of {', '.join(CLASS_LISTS)}")
    return CLASS_LISTS[value]


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"expected every class once, but {twice[0]!r} is there more often")
    return names


ClassNames = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(_bundled),
]
Crop = Annotated[float, Field(gt=0, le=1)]


class _Source(Section):
    """What all sources share."""

    source: str
    name: Annotated[str, Field(min_length=1)] | None = None
    """What tables call the set; by default named after the source."""
    limit: PositiveInt | None = None
    """Keep at most this many images, a random subset drawn with `seed`."""
    seed: NonNegativeInt = 0
    """Seed of everything random in the source."""
    group: Literal["near", "far"] | None = None
    """Of an OOD test set: whether it counts as `near` or `far` OOD; by default as OpenOOD groups it
    beside this ID set, where it does (`greg_cert.data.groups`).
    """

    @property
    def title(self) -> str:
        """The name of the set: `name` where given, otherwise one that says what it holds."""
        return self.name or self._default_title()

    def _default_title(self) -> str:
        return self.source


class _Drawn(_Source):
    """A source that draws as many images as asked: 10,000 as auxiliary set, 500 as OOD test set."""

    n: PositiveInt | None = None


class DigitsSource(_Source):
    """scikit-learn's 1,797 handwritten digits, 8×8, 16 grey levels, ten classes."""

    source: Literal["digits"] = "digits"


class FacesSource(_Source):
    """The 100 faces of scikit-image's `lfw_subset`, 25×25 (its other 100 patches hold no face)."""

    source: Literal["faces"] = "faces"


class PhotographsSource(_Drawn):
    """Random crops of the photographs that scikit-image and scikit-learn bring with them."""

    source: Literal["photographs"] = "photographs"


class TexturesSource(_Drawn):
    """Random crops of scikit-image's brick, grass and gravel."""

    source: Literal["textures"] = "textures"


class TextSource(_Drawn):
    """Random crops of scikit-image's scanned page and photographed text."""

    source: Literal["text"] = "text"


class UniformSource(_Drawn):
    """Noise: every channel of every pixel uniform over the 256 grey levels."""

    source: Literal["uniform"] = "uniform"


class GaussianSource(_Drawn):
    """Noise: normal with mean 0.5 and deviation 0.25, clipped to [0, 1], in 256 grey levels."""

    source: Literal["gaussian"] = "gaussian"


class ArraySource(_Source):
    """Images in a `.npz` (with labels where needed) or `.npy` file; nothing is ever unpickled."""

    source: Literal["array"] = "array"
    path: Path
    """The file."""
    images: str = "images"
    """Key of the images in a `.npz`."""
    labels: str = "labels"
    """Key of the labels in a `.npz`; read only for in-distribution sets."""
    layout: Literal["auto", "nhwc", "nchw", "nhw"] = "auto"
    """Order of the axes; "auto" takes the axis that is 1 or 3 for the channels."""
    scale: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """The stored value that stands for white, such as 1, 255 or 65535; every value lies between 0
    and it, and is divided by it. "auto" takes 255 for uint8 and 1 for floating point, refuses other
    types, and says so where no pixel comes near it.
    """
    keep: Keep = "auto"
    """Where the images stay: in "memory", or (`.npy` only) on "disk", from where they are read as
    they are needed; "auto" leaves them there beyond 4 GiB.
    """

    def _default_title(self) -> str:
        return self.path.stem


class FolderSource(_Source):
    """Image files: `path/<class>/*` with labels; `path/*` also serves where none are needed."""

    source: Literal["folder"] = "folder"
    path: Path
    """A folder, or an archive (`.tar`, `.tar.gz`, `.tar.xz`, `.tar.bz2`, `.zip`), which is read
    without being unpacked.
    """
    inside: PurePosixPath | None = None
    """Folder inside the archive that holds the classes; by default its top."""
    classes: ClassNames | None = None
    """Class folders to read, in the order of their labels, or the name of a list in
    `greg_cert.data.files.class_lists`; by default all, sorted.
    """
    classes_file: Path | None = None
    """The same as a text file: a name a line, `#` before comments."""
    exclude_classes: ClassNames | None = None
    """Class folders to leave out, as `classes`."""
    exclude_classes_file: Path | None = None
    """The same as a text file."""
    crop: Crop = 1.0
    """Share of the shorter side that is kept when images are squared; 0.875 is ImageNet's
    256-to-224 crop.
    """
    keep: Keep = "auto"
    """Where the images stay: decoded in "memory", or on "disk", from where they are read and
    decoded as they are needed; "auto" leaves them there if they would fill over 4 GiB.
    """

    @property
    def archived(self) -> bool:
        """Whether `path` names an archive by its ending."""
        return self.path.name.lower().endswith(ARCHIVES)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lists = ("classes", "classes_file", "exclude_classes", "exclude_classes_file")
        given = [name for name in lists if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"expected at most one of {', '.join(lists)}, but got {given[:2]}")
        _each_once(self.classes or self.exclude_classes or ())
        if self.inside is not None:
            if not self.archived:
                raise ValueError(
                    f"expected `inside` only where path is an archive ({', '.join(ARCHIVES)}), "
                    f"but path is {str(self.path)!r}"
                )
            if self.inside.is_absolute() or ".." in self.inside.parts:
                found = str(self.inside)
                raise ValueError(f"expected `inside` below the archive's top, but got {found!r}")
        return self

    def _default_title(self) -> str:
        if not self.archived:
            return self.path.name or self.source
        return str(self.inside) if self.inside else self.path.name.partition(".")[0]


class TorchvisionSource(_Source):
    """A set that torchvision reads from `root`, and downloads on request."""

    source: Literal["torchvision"] = "torchvision"
    dataset: Literal[
        "CIFAR10",
        "CIFAR100",
        "DTD",
        "EMNIST",
        "FashionMNIST",
        "Food101",
        "GTSRB",
        "KMNIST",
        "MNIST",
        "Places365",
        "STL10",
        "SVHN",
    ]
    """Its name in torchvision. EMNIST is its letters, Places365 its 256x256 images (test: the
    validation split).
    """
    root: Path
    """Folder that holds, or is to hold, its files."""
    split: Literal["train", "test"]
    """Which of its images."""
    download: bool = False
    """Whether it may be fetched."""
    crop: Crop = 1.0
    """As for folders; only for the sets of photographs (DTD, Food101, GTSRB, Places365)."""
    keep: Keep = "auto"
    """As for folders; only for the sets of photographs."""

    def _default_title(self) -> str:
        return self.dataset.lower()


LabelledSource = Annotated[
    DigitsSource | ArraySource | FolderSource | TorchvisionSource,
    Field(discriminator="source"),
]
Source = Annotated[
    DigitsSource
    | FacesSource
    | PhotographsSource
    | TexturesSource
    | TextSource
    | UniformSource
    | GaussianSource
    | ArraySource
    | FolderSource
    | TorchvisionSource,
    Field(discriminator="source"),
]


class DataConfig(Section):
    """Which images are in-distribution, which are auxiliary outliers, and which test detection."""

    id: LabelledSource
    """In-distribution set; needs labels."""
    id_test: LabelledSource | None = None
    """A test set of its own; without one, the test split is cut from `id`."""
    aux: Source | None = None
    """Auxiliary outliers seen in training."""
    ood: tuple[Source, ...] = ()
    """Out-of-distribution test sets, never seen in training."""
    image_size: PositiveInt | None = None
    """Height and width of every image; that of `id` by default."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); those of `id` by default."""
    calibration: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of `id` that sets the threshold."""
    test: float = Field(default=0.35, gt=0, lt=1)
    """Fraction of `id` that is tested on; ignored when `id_test` is given."""
    seed: NonNegativeInt = 0
    """Seed of the splits."""
    shared: Literal["refuse", "drop"] = "refuse"
    """What to do with images that two sets have in common which must not: "refuse", or "drop" them,
    from `id` what is also in `id_test` (or the split cut for it), from an OOD set what is also
    in-distribution, from `aux` what is in any other. How they are found is told in
    `greg_cert.data.duplicates`.
    """
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Per-channel mean that the model subtracts, in [0, 1] units; by default that of the train
    split (of 5,000 of its images where it stays on disk). Given together with `std`.
    """
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """Per-channel standard deviation that the model divides by; by default as `mean`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.id_test is None and self.calibration + self.test >= 1:
            raise ValueError(
                "expected calibration + test < 1, so that something is left to train on, "
                f"but got {self.calibration:g} + {self.test:g}"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("expected mean and std both or neither, but got one of them")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise ValueError(f"expected one {name} a channel, 1 or 3, but got {len(values)}")
        for role, source in (("id", self.id), ("id_test", self.id_test), ("aux", self.aux)):
            if source is not None and source.group is not None:
                raise ValueError(f"expected group on OOD test sets alone, but {role} has one")
        twice = [name for name, n in Counter(s.title for s in self.ood).items() if n > 1]
        if twice:
            raise ValueError(
                f"expected OOD sets with different names, but got {twice[0]!r} more than once. "
                "Give one of them another `name`"
            )
        return self
