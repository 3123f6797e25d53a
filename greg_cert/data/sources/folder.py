"""Image files in a folder or an archive: a subfolder a class, or flat without labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from greg_cert.data.files.class_lists import CLASS_LISTS
from greg_cert.data.files.classes import ClassChoice
from greg_cert.data.reject import data_error
from greg_cert.data.sources.base import Crop, Keep, Request, StoredSource
from greg_cert.files import is_folder, plain_file, real_path, user_path

if TYPE_CHECKING:
    from greg_cert.data.types import Images

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")


def _bundled(value: object) -> object:
    """The names of a bundled class list where its own name is given."""
    if not isinstance(value, str):
        return value
    if value not in CLASS_LISTS:
        raise ValueError(f"expected a list of class names, or one of {', '.join(CLASS_LISTS)}")
    return CLASS_LISTS[value]


def _repeated(names: tuple[str, ...]) -> str | None:
    return next((name for name, n in Counter(names).items() if n > 1), None)


ClassNames = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(_bundled),
]
_LISTS = ("classes", "classes_file", "exclude_classes", "exclude_classes_file")


class FolderSource(StoredSource):
    """Image files: `path/<class>/*` with labels; `path/*` also serves where none are needed."""

    labelled: ClassVar[bool] = True

    source: Literal["folder"] = "folder"
    path: Path
    """A folder, or an archive (`.tar`, `.tar.gz`, `.tar.xz`, `.tar.bz2`, `.zip`), which is read
    without being unpacked.
    """
    inside: PurePosixPath | None = None
    """Folder inside the archive that holds the classes; by default its top, or the only folder that
    does, as where the archive holds one folder with all in it.
    """
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
    256-to-224 crop. `image_size`: the centre of that size is cut out and nothing is resized.
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
        given = [name for name in _LISTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"expected at most one of {', '.join(_LISTS)}, but got {given[:2]}")
        if twice := _repeated(self.classes or self.exclude_classes or ()):
            raise ValueError(f"expected every class once, but {twice!r} is there more often")
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

    def place(self) -> Path:
        """See `DataSource`; folders inside an archive count as folders."""
        return real_path(self.path) / (self.inside or "")

    def chosen_classes(self, *, field: str) -> ClassChoice:
        """See `DataSource`."""
        for name in _LISTS:
            if (given := getattr(self, name)) is not None:
                at = f"{field}.{name}"
                names = _listed_in(given, field=at) if isinstance(given, Path) else given
                return ClassChoice(names, not name.startswith("exclude"), at)
        return ClassChoice((), False, f"{field}.path")

    def load(self, request: Request) -> Images:
        """The images, with labels in the order of the classes where those are asked for.

        Classes are those configured, in that order, or all, sorted. Only the files that `limit`
        keeps are opened.

        Raises:
            DataError: As `list_images` and `load_files`.
        """
        from greg_cert.data.files.file_sets import load_files
        from greg_cert.data.files.listing import list_images
        from greg_cert.data.scale import tell_if_dark

        path, place = user_path(self.path), f"{request.field}.path"
        listing = list_images(
            path,
            self.inside,
            self.chosen_classes(field=request.field),
            archived=self.archived and not is_folder(path),
            field=place,
            labelled=request.labelled,
        )
        images = load_files(listing, self, request, place=place, crop=self.crop, keep=self.keep)
        tell_if_dark(images, field=place, remedy="Are these labels or masks, saved as pictures?")
        return images


def _listed_in(path: Path, *, field: str) -> tuple[str, ...]:
    """The names in a text file: one a line, without comments and blank lines."""
    path = user_path(path)
    try:
        text = plain_file(path).read_text(
            encoding="utf-8-sig"
        )  # editors on Windows begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        found = f"{str(path)!r} ({type(error).__name__}: {error})"
        raise data_error(field, "a readable text file, one class a line", found) from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    names = tuple(line for line in lines if line)
    if not names:
        raise data_error(field, "at least one class", f"none in {str(path)!r}")
    if twice := _repeated(names):
        raise data_error(field, "every class once", f"{twice!r} more often in {str(path)!r}")
    return names
