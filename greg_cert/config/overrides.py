"""Single settings given on top of a configuration, as `train.epochs=5`, checked by the schema."""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel

from greg_cert.config.yaml_text import DuplicateKey, load_yaml
from greg_cert.errors import ConfigError
from greg_cert.stages import StageConfig

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+|\[\d+\])*")
_PART = re.compile(r"\w+")


class Override(NamedTuple):
    """One setting.

    Attributes:
        text: as it was typed.
        path: keys and list positions that lead to it.
        value: as YAML reads it.
    """

    text: str
    path: tuple[str | int, ...]
    value: Any


def parse_override(text: str) -> Override:
    """`data.ood[0].n=50` as a path and a value; values are read as YAML.

    Raises:
        ConfigError: where there is no key, no `=`, or no valid YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(f"--set: expected KEY=VALUE such as train.epochs=5, but got {text!r}")
    parts = [int(part) if part.isdecimal() else part for part in _PART.findall(key)]
    try:
        return Override(text, tuple(parts), load_yaml(value) if value.strip() else "")
    except yaml.YAMLError as error:
        why = f" ({error})" if isinstance(error, DuplicateKey) else ""
        raise ConfigError(
            f"--set {key}: expected a value in YAML, but got {value!r}{why}"
        ) from error


def apply_overrides(
    raw: dict[str, Any], overrides: Sequence[str], schema: type[BaseModel]
) -> dict[str, Any]:
    """A copy of a configuration's plain values with the overrides in place.

    A setting of a stage, given as `train.FIELD`, is set in every stage. The position after the last
    of a list adds one to it. Relative paths start from the current folder, since they were typed
    there.

    Args:
        raw: what the YAML file holds.
        overrides: as `parse_override` reads them; later ones win.
        schema: the record that `raw` is to become.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a list position that there is
            not.
    """
    found = copy.deepcopy(raw)
    for text in overrides:
        one = parse_override(text)
        for path in _spread(one, found):
            _set(found, path, one, schema)
    return found


def _spread(one: Override, raw: dict[str, Any]) -> list[tuple[str | int, ...]]:
    """The path itself, or for a stage's field that of every stage."""
    first, *rest = one.path
    train = raw.get("train")
    stages = train.get("stages") if isinstance(train, dict) else None
    if first != "train" or not rest or not isinstance(stages, list):
        return [one.path]
    from greg_cert.config.experiment import TrainConfig

    field = rest[0]
    if field in TrainConfig.model_fields or field not in StageConfig.model_fields:
        return [one.path]
    return [("train", "stages", i, *rest) for i in range(len(stages))]


def _set(
    raw: dict[str, Any], path: tuple[str | int, ...], one: Override, schema: type[BaseModel]
) -> None:
    here: Any = raw
    types_here: list[Any] = [schema]
    for at, part in enumerate(path):
        last = at + 1 == len(path)
        where = _name(path[:at])
        if isinstance(part, int):
            types_here = [item for kind in types_here for item in _items(kind)]
            size = len(here) if isinstance(here, list) else None
            if last and part == size:
                here.append(None)  # one more
            elif size is None or not part < size:
                found = "no list" if size is None else f"{size} of them"
                raise ConfigError(
                    f"--set {one.text}: expected a position in {where}, which has {found}, "
                    f"but got {part}"
                )
        else:
            types_here = _field(types_here, part, path[:at], one)
            if not isinstance(here, dict):
                raise ConfigError(
                    f"--set {one.text}: expected a section at {where or 'the top'}, "
                    f"but {here!r} stands there"
                )
        if last:
            here[part] = _anchored(one.value, types_here)
        elif isinstance(part, int):
            here = here[part]
        else:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]


def _field(kinds: list[Any], part: str, before: tuple[str | int, ...], one: Override) -> list[Any]:
    """The types that a key may have in any of the sections; free-form sections take every key."""
    sections = [k for kind in kinds for k in _members(kind) if _is_section(k)]
    if not sections:
        if any(typing.get_origin(k) is dict or k is dict for kind in kinds for k in _members(kind)):
            return [Any]
        raise ConfigError(
            f"--set {one.text}: expected {_name(before)} to be a section, but it is a single value"
        )
    known = {name: f.annotation for s in sections for name, f in s.model_fields.items()}
    if part in known:
        return [s.model_fields[part].annotation for s in sections if part in s.model_fields]
    names = set(known)
    if _name(before) == "train":
        names |= set(StageConfig.model_fields)
    near = difflib.get_close_matches(part, names, n=1)
    full = _name((*before, part))
    hint = (
        f"; did you mean {_name((*before, near[0]))!r}?"
        if near
        else (f"; expected one of {', '.join(sorted(known))}")
    )
    raise ConfigError(f"--set: unknown key {full!r}{hint}")


def _members(kind: Any) -> list[Any]:
    """The alternatives of a type, `Annotated` and `Optional` opened."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for a in typing.get_args(kind) for m in _members(a)]
    return [kind]


def _items(kind: Any) -> list[Any]:
    """Types of the elements of a list or tuple."""
    return [
        item
        for member in _members(kind)
        if typing.get_origin(member) in (tuple, list)
        for item in typing.get_args(member)
        if item is not Ellipsis
    ]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _anchored(value: Any, kinds: list[Any]) -> Any:
    """A value with its relative paths made absolute; `init` may be a bare path."""
    members = [m for kind in kinds for m in _members(kind)]
    sections = [m for m in members if _is_section(m)]
    if isinstance(value, dict):
        known = {k: [s.model_fields[k] for s in sections if k in s.model_fields] for k in value}
        return {k: _anchored(v, [f.annotation for f in known[k]]) for k, v in value.items()}
    if isinstance(value, list):
        items = [item for kind in kinds for item in _items(kind)]
        return [_anchored(v, items) for v in value]
    paths = any(m is Path for m in members) or any("weights" in s.model_fields for s in sections)
    return str(Path.cwd() / Path(value).expanduser()) if paths and isinstance(value, str) else value


def _name(path: Sequence[str | int]) -> str:
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name
