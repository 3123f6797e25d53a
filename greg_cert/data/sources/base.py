"""What every data source has in common: its settings, and what can be asked of it.

The sources are read with every configuration, so they import torch and image libraries only inside
the functions that read images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from greg_cert.data.files.classes import ClassChoice
from greg_cert.data.reject import check_memory
from greg_cert.section import Count, Name, Section, Seed

if TYPE_CHECKING:
    from torch import Tensor

    from greg_cert.data.types import Images

Crop = Annotated[float, Field(gt=0, le=1)] | Literal["image_size"]
Keep = Literal["auto", "memory", "disk"]

DRAWN = {"aux": 10_000, "ood": 500}  # how many images are drawn where `n` is not given


@dataclass(frozen=True)
class Request:
    """What a source is asked for.

    Channels and size, height and width, are None for the source's own, of an ID set alone.
    """

    field: str  # path of the source in the configuration, for errors
    role: Literal["id", "aux", "ood"]  # in-distribution, with labels; auxiliary; OOD test set
    channels: int | None = None
    size: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether labels are needed."""
        return self.role == "id"


class DataSource(Section):
    """What all sources share."""

    labelled: ClassVar[bool] = False  # whether it has labels, and so may be in-distribution

    source: str
    name: Name | None = None
    """What tables call the set; by default named after the source."""
    limit: Count | None = None
    """Keep at most this many images, a random subset drawn with `seed`."""
    seed: Seed = 0
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

    def load(self, request: Request) -> Images:
        """The images, of any size and number of channels.

        They may have labels that were not asked for, and more images than `limit` allows; `read`
        in this folder does the rest.

        Raises:
            DataError: They are missing, damaged or mislabelled.
        """
        raise NotImplementedError

    def place(self) -> Path | None:
        """The file or folder that it reads, by which overlaps with other sources are found."""
        return None

    def holds(self) -> frozenset[str]:
        """Names of what it holds, where those tell better than a place what it has in common."""
        return frozenset()

    def chosen_classes(self, *, field: str) -> ClassChoice | None:
        """Which class folders it reads, where it reads such.

        Raises:
            DataError: A list of them cannot be read.
        """
        return None


class StoredSource(DataSource):
    """A source of files on this machine, which may name another one for where they are missing."""

    otherwise: dict[str, Any] | None = None
    """Another source, taken where there is nothing at `path`. A resolved configuration holds the
    one that was taken.
    """

    @model_validator(mode="after")
    def _settled(self) -> Self:
        if self.otherwise is not None:  # `DataConfig` has taken one of the two
            raise ValueError("expected otherwise in the sources of a `data` section alone")
        return self


class DrawnSource(DataSource):
    """A source that draws as many images as asked: 10,000 as auxiliary set, 500 as OOD test set."""

    n: Count | None = None
    """How many images are drawn; by default 10,000 as auxiliary set, 500 as OOD test set."""

    def load(self, request: Request) -> Images:
        """See `DataSource`."""
        from greg_cert.data.types import ImageSet

        assert request.channels is not None  # no ID set
        assert request.size is not None
        shape = self.n or DRAWN[request.role], request.channels, request.size, request.size
        hint = "Draw fewer images, or smaller ones"
        check_memory(f"{request.field}.n", math.prod(shape), hint=hint)
        return ImageSet(self.title, self.draw(shape, field=request.field))

    def draw(self, shape: tuple[int, int, int, int], *, field: str) -> Tensor:
        """Images of shape (n, C, H, W), H = W, fixed by `seed`."""
        raise NotImplementedError
