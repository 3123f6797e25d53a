"""Which class folders a source reads: those it lists, all but those it lists, or all."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from greg_cert.data.reject import data_error


@dataclass(frozen=True)
class ClassChoice:
    """A choice of classes by name."""

    names: tuple[str, ...]
    listed: bool  # whether only these are kept, or all others
    field: str  # path of the one that lists them

    def of(self, present: list[str], *, where: str) -> list[str]:
        """The chosen ones of the classes present: in the listed order, or in the present one.

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
