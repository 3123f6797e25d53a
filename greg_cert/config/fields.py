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


_SYNONYMS = {
    "lr": ("learning_rate", "base_lr", "eta"),
    "batch_size": ("batch", "bs", "batchsize", "minibatch"),
    "epochs": ("num_epochs", "n_epochs", "max_epochs"),
    "weight_decay": ("wd", "l2", "decay"),
    "schedule": ("scheduler", "lr_schedule", "lr_scheduler"),
    "optimizer": ("optim", "optimiser"),
    "augment": ("augmentation", "transforms", "aug"),
    "name": ("arch", "architecture", "net", "network", "title"),
    "source": ("type", "kind", "dataset"),
    "path": ("root", "dir", "folder", "file"),
    "n": ("num_samples", "n_samples", "size"),
    "samples": ("num_samples", "n_samples", "n"),
    "max_radius": ("eps", "epsilon", "radius"),
    "seed": ("random_seed", "random_state"),
    "init": ("checkpoint", "pretrained"),
    "devices": ("gpus", "num_gpus"),
}
"""What others call our keys."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that another was meant to be: a synonym, or mistyped; None where none is."""
    names, low = list(known), word.lower()
    if low in names and low != word:
        return low
    if meant := [name for name in names if low in _SYNONYMS.get(name, ())]:
        return meant[0]
    return next(iter(difflib.get_close_matches(low, names, n=1)), None)


def tag_of(record: type[BaseModel]) -> str | None:
    """What tells a record from others of a union: the one value of its `source`."""
    field = record.model_fields.get("source")
    return None if field is None else field.default


def difference(one: Any, other: Any, path: tuple[str | int, ...] = ()) -> str | None:
    """Where two values of plain keys and lists first differ, as `key is …, and was …`."""
    if isinstance(one, dict) and isinstance(other, dict):
        parts: Iterable[Any] = dict.fromkeys([*one, *other])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = range(len(one))
    else:
        return None if one == other else f"{dotted(path)} is {one!r}, and was {other!r}"
    for part in parts:
        mine, theirs = (v.get(part) if isinstance(v, dict) else v[part] for v in (one, other))
        if (found := difference(mine, theirs, (*path, part))) is not None:
            return found
    return None


def dotted(path: Iterable[str | int]) -> str:
    """Keys and list positions as one name, such as `data.ood[0].n`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name
