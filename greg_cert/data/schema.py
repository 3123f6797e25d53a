"""The `data` part of a configuration: which sources play which role, and how they are split.

Only what can be judged without opening a file is judged here; `greg_cert.data.load_data` does the
rest. This module imports pydantic and nothing heavier.
"""

from __future__ import annotations

from collections import Counter
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from greg_cert.data.sources.base import DataSource
from greg_cert.data.sources.missing import present
from greg_cert.data.sources.table import SOURCES
from greg_cert.section import Count, Section, Seed

ONE, SEVERAL = "<source>", "<sources>"  # stand in the place of an error, and are no keys


def _how_many(value: Any) -> str:
    return SEVERAL if isinstance(value, (list, tuple)) else ONE


if TYPE_CHECKING:
    LabelledSource = DataSource
    Source = DataSource
    Sources = DataSource | tuple[DataSource, ...]
else:
    _KIND = Field(discriminator="source")
    LabelledSource = Annotated[reduce(or_, (s for s in SOURCES if s.labelled)), _KIND]
    Source = Annotated[reduce(or_, SOURCES), _KIND]
    _List = Annotated[tuple[Source, ...], Field(min_length=1)]
    Sources = Annotated[
        Annotated[Source, Tag(ONE)] | Annotated[_List, Tag(SEVERAL)], Discriminator(_how_many)
    ]


def _taken(source: Any, base: Path, role: str) -> Any:
    """As `present`; the other source is judged where it is not taken, too."""
    found = present(source, base, f"data.{role}")
    other = source.get("otherwise") if isinstance(source, dict) else None
    if other is not None and found is not other:
        kind = LabelledSource if role.startswith("id") else Source
        try:
            TypeAdapter(kind).validate_python(other)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, ["otherwise", *problem["loc"][1:]]))
            said = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
            raise ValueError(f"expected a source in data.{role}.{where}, but {said}") from None
    return found


class DataConfig(Section):
    """Which images are in-distribution, which are auxiliary outliers, and which test detection."""

    id: LabelledSource
    """In-distribution set; needs labels."""
    id_test: LabelledSource | None = None
    """A test set of its own; without one, the test split is cut from `id`."""
    aux: Sources | None = None
    """Auxiliary outliers seen in training: a source, or a list of sources that are taken together.
    """
    ood: tuple[Source, ...] = ()
    """Out-of-distribution test sets, never seen in training."""
    image_size: Count | None = None
    """Height and width of every image; that of `id` by default."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB); those of `id` by default."""
    calibration: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of `id` that sets the threshold."""
    test: float = Field(default=0.35, gt=0, lt=1)
    """Fraction of `id` that is tested on; ignored when `id_test` is given."""
    seed: Seed = 0
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

    @model_validator(mode="before")
    @classmethod
    def _take_what_is_there(cls, values: Any, info: ValidationInfo) -> Any:
        """Of each source with another for where it is missing, one; paths as the caller says."""
        if not isinstance(values, dict):
            return values
        base = (info.context or {}).get("base", Path())
        taken = dict(values)
        for role in ("id", "id_test", "aux", "ood"):
            if isinstance(values.get(role), (list, tuple)):
                sets = enumerate(values[role])
                taken[role] = [_taken(source, base, f"{role}[{i}]") for i, source in sets]
            elif role in values:
                taken[role] = _taken(values[role], base, role)
        return taken

    def auxiliary(self) -> dict[str, DataSource]:
        """The sources of `aux`, each by its key."""
        if isinstance(self.aux, tuple):
            return {f"aux[{i}]": source for i, source in enumerate(self.aux)}
        return {} if self.aux is None else {"aux": self.aux}

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
        for role, source in {"id": self.id, "id_test": self.id_test, **self.auxiliary()}.items():
            if source is not None and source.group is not None:
                raise ValueError(f"expected group on OOD test sets alone, but {role} has one")
        twice = [name for name, n in Counter(s.title for s in self.ood).items() if n > 1]
        if twice:
            raise ValueError(
                f"expected OOD sets with different names, but got {twice[0]!r} more than once. "
                "Give one of them another `name`"
            )
        return self
