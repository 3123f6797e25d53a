"""What the types of a record's fields are made of."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel


def members(kind: Any) -> list[Any]:
    """The alternatives of a type, `Annotated` and `Optional` opened."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for a in typing.get_args(kind) for m in members(a)]
    return [kind]


def items(kind: Any) -> list[Any]:
    """Types of the elements of a list or tuple."""
    return [
        item
        for member in members(kind)
        if typing.get_origin(member) in (tuple, list)
        for item in typing.get_args(member)
        if item is not Ellipsis
    ]


def sections(kind: Any) -> list[type[BaseModel]]:
    """The records among the alternatives of a type."""
    return [m for m in members(kind) if isinstance(m, type) and issubclass(m, BaseModel)]


def all_sections(record: type[BaseModel]) -> set[type[BaseModel]]:
    """A record, those in it, and so on."""
    found = {record}
    for field in record.model_fields.values():
        for kind in (field.annotation, *items(field.annotation)):
            found = found.union(*map(all_sections, sections(kind)))
    return found


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one was meant to be, where one is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def dotted(path: Iterable[str | int]) -> str:
    """Keys and list positions as one name, such as `data.ood[0].n`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name
