"""Which class folders a source reads: those it lists, all but those it lists, or all."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from greg_cert.data.reject import data_error
from greg_cert.data.schema import FolderSource


@dataclass(frozen=True)
class ClassChoice:
    """A choice of classes by name.

    Attributes:
        names: The classes listed, in their order.
        listed: True keeps only these, False all others.
        field: Path of the field that lists them.
    """

    names: tuple[str, ...]
    listed: bool
    field: str

    def of(self, present: list[str], *, where: str) -> list[str]:
        """The chosen ones of the classes present: in the listed order, or in the present one.

        Args:
            present: Names of all class folders.
            where: What errors call the place that holds them.

        Raises:
            DataError: A listed class is not there, or none is left.
        """
        known = set(present)
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, present, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else ""
                found = f"{name!r}, which is not there"
                raise data_error(self.field, f"class folders of {where!r}", found, hint=hint)
        if self.listed:
            return list(self.names)
        left_out = set(self.names)
        left = [name for name in present if name not in left_out]
        if not left:
            raise data_error(self.field, f"some class of {where!r} left", "all of them left out")
        return left

    def disjoint_from(self, other: ClassChoice) -> bool:
        """Whether the two choices can have no class in common, wherever they choose from."""
        mine, others = set(self.names), set(other.names)
        if self.listed and other.listed:
            return not mine & others
        if self.listed:
            return mine <= others
        return other.listed and others <= mine


def class_choice(source: FolderSource, *, field: str) -> ClassChoice:
    """The classes that a folder source asks for.

    Raises:
        DataError: A list is in a file that cannot be read, is empty, or names a class twice.
    """
    if source.classes is not None:
        return ClassChoice(source.classes, True, f"{field}.classes")
    if source.exclude_classes is not None:
        return ClassChoice(source.exclude_classes, False, f"{field}.exclude_classes")
    if source.classes_file is not None:
        field = f"{field}.classes_file"
        return ClassChoice(_read(source.classes_file, field=field), True, field)
    if source.exclude_classes_file is not None:
        field = f"{field}.exclude_classes_file"
        return ClassChoice(_read(source.exclude_classes_file, field=field), False, field)
    return ClassChoice((), False, f"{field}.path")


def _read(path: Path, *, field: str) -> tuple[str, ...]:
    """The names in a text file: one a line, without comments and blank lines."""
    path = path.expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = f"{str(path)!r} ({type(error).__name__}: {error})"
        raise data_error(field, "a readable text file, one class a line", found) from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    names = tuple(line for line in lines if line)
    if not names:
        raise data_error(field, "at least one class", f"none in {str(path)!r}")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise data_error(field, "every class once", f"{twice!r} more often in {str(path)!r}")
    return names
