"""The `data` part of a configuration: which sources play which role, and how they are split.

Only what can be judged without opening a file is judged here; `greg_cert.data.load_data` does the
rest. This module imports pydantic and nothing heavier.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator


class _Source(BaseModel):
    """What all sources share.

    Attributes:
        name: What tables call the set; by default named after the source.
        limit: Keep at most this many images, a random subset drawn with `seed`.
        seed: Seed of everything random in the source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    name: Annotated[str, Field(min_length=1)] | None = None
    limit: PositiveInt | None = None
    seed: NonNegativeInt = 0

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
    """Images in a `.npz` (with labels where needed) or `.npy` file; nothing is ever unpickled.

    Attributes:
        path: The file.
        images: Key of the images in a `.npz`.
        labels: Key of the labels in a `.npz`; read only for in-distribution sets.
        layout: Order of the axes; "auto" takes the axis that is 1 or 3 for the channels.
    """

    source: Literal["array"] = "array"
    path: Path
    images: str = "images"
    labels: str = "labels"
    layout: Literal["auto", "nhwc", "nchw", "nhw"] = "auto"

    def _default_title(self) -> str:
        return self.path.stem


class FolderSource(_Source):
    """Image files: `path/<class>/*` with labels; `path/*` also serves where none are needed."""

    source: Literal["folder"] = "folder"
    path: Path

    def _default_title(self) -> str:
        return self.path.name or self.source


class TorchvisionSource(_Source):
    """A set that torchvision reads from `root`, and downloads on request."""

    source: Literal["torchvision"] = "torchvision"
    dataset: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN", "DTD"]
    root: Path
    split: Literal["train", "test"]
    download: bool = False

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


class DataConfig(BaseModel):
    """Which images are in-distribution, which are auxiliary outliers, and which test detection.

    Attributes:
        id: In-distribution set; needs labels.
        id_test: A test set of its own; without one, the test split is cut from `id`.
        aux: Auxiliary outliers seen in training.
        ood: Out-of-distribution test sets, never seen in training.
        image_size: Height and width of every image; that of `id` by default.
        channels: 1 (grey) or 3 (RGB); those of `id` by default.
        calibration: Fraction of `id` that sets the threshold.
        test: Fraction of `id` that is tested on; ignored when `id_test` is given.
        seed: Seed of the splits.
        shared: What to do with images that a training set (`id`, `aux`) has in common, pixel for
            pixel, with the test set it must not know: "refuse", or "drop" them from training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: LabelledSource
    id_test: LabelledSource | None = None
    aux: Source | None = None
    ood: tuple[Source, ...] = ()
    image_size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    calibration: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.35, gt=0, lt=1)
    seed: NonNegativeInt = 0
    shared: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.id_test is None and self.calibration + self.test >= 1:
            raise ValueError(
                "expected calibration + test < 1, so that something is left to train on, "
                f"but got {self.calibration:g} + {self.test:g}"
            )
        twice = [name for name, n in Counter(s.title for s in self.ood).items() if n > 1]
        if twice:
            raise ValueError(
                f"expected OOD sets with different names, but got {twice[0]!r} more than once. "
                "Give one of them another `name`"
            )
        return self
