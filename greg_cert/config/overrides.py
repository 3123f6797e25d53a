"""Single settings given on top of a configuration, as `train.epochs=5`, checked by the schema."""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from greg_cert.config.experiment import TrainConfig
from greg_cert.config.fields import dotted, items, members, nearest, sections
from greg_cert.config.yaml_text import Refused, load_yaml
from greg_cert.errors import ConfigError, shown
from greg_cert.files import user_path
from greg_cert.stages import StageConfig

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+|\[\d+\])*")
_PART = re.compile(r"\w+")


class Override(NamedTuple):
    """One setting."""

    text: str  # as it was typed
    path: tuple[str | int, ...]  # keys and list positions that lead to it
    value: Any


def parse_override(text: str) -> Override:
    """`data.ood[0].n=50` as a path and a value; values are read as YAML.

    Raises:
        ConfigError: where there is no key, no `=`, or no valid YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(
            f"--set: expected KEY=VALUE such as train.epochs=5, but got {shown(text)}"
        )
    parts = [int(part) if part.isdecimal() else part for part in _PART.findall(key)]
    try:
        return Override(text, tuple(parts), load_yaml(value) if value.strip() else "")
    except yaml.YAMLError as error:
        why = f" ({error})" if isinstance(error, Refused) else ""
        raise ConfigError(
            f"--set {key}: expected a value in YAML, but got {shown(value)}{why}"
        ) from error


def apply_overrides(
    raw: dict[str, Any], overrides: Sequence[str], schema: type[BaseModel]
) -> dict[str, Any]:
    """A copy of a configuration's plain values with the overrides in place.

    A setting of a stage, given as `train.FIELD`, is set in every stage. The position after the last
    of a list adds one to it; later overrides win. Relative paths start from the current folder,
    since they were typed there. `schema` is the record that `raw` is to become.

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
    field = rest[0]
    if field in TrainConfig.model_fields or field not in StageConfig.model_fields:
        return [one.path]
    return [("train", "stages", i, *rest) for i in range(len(stages))]


def _set(
    raw: dict[str, Any], path: tuple[str | int, ...], one: Override, schema: type[BaseModel]
) -> None:
    here: Any = raw
    kinds: list[Any] = [schema]
    for at, part in enumerate(path):
        last, where = at + 1 == len(path), dotted(path[:at])
        if isinstance(part, int):
            kinds = [item for kind in kinds for item in items(kind)]
            if last and isinstance(here, list) and part == len(here):
                here.append(None)  # one more
            elif not isinstance(here, list) or part >= len(here):
                found = f"{len(here)} of them" if isinstance(here, list) else "no list"
                raise ConfigError(
                    f"--set {one.text}: expected a position in {where}, which has {found}, "
                    f"but got {part}"
                )
        else:
            kinds = _field(kinds, part, path[:at], one)
            if not isinstance(here, dict):
                raise ConfigError(
                    f"--set {one.text}: expected a section at {where or 'the top'}, "
                    f"but {shown(here)} stands there"
                )
            if not last and here.get(part) is None:
                here[part] = {}
        if last:
            here[part] = _anchored(one.value, kinds)
        else:
            here = here[part]


def _field(kinds: list[Any], part: str, before: tuple[str | int, ...], one: Override) -> list[Any]:
    """The types that a key may have in any of the sections; free-form sections take every key."""
    here = [section for kind in kinds for section in sections(kind)]
    if not here:
        if any(typing.get_origin(k) is dict or k is dict for kind in kinds for k in members(kind)):
            return [Any]
        raise ConfigError(
            f"--set {one.text}: expected {dotted(before)} to be a section, but it is a single value"
        )
    if found := [s.model_fields[part].annotation for s in here if part in s.model_fields]:
        return found
    known = {name for section in here for name in section.model_fields}
    also = StageConfig.model_fields if dotted(before) == "train" else ()
    hint = f"expected one of {', '.join(sorted(known))}"
    if near := nearest(part, known.union(also)):
        hint = f"did you mean {dotted((*before, near))!r}?"
    raise ConfigError(f"--set: unknown key {dotted((*before, part))!r}; {hint}")


def _anchored(value: Any, kinds: list[Any]) -> Any:
    """A value with its relative paths made absolute; `init` may be a bare path."""
    fields = [section.model_fields for kind in kinds for section in sections(kind)]
    if isinstance(value, dict):
        known = {k: [f[k].annotation for f in fields if k in f] for k in value}
        return {k: _anchored(v, known[k]) for k, v in value.items()}
    if isinstance(value, list):
        inner = [item for kind in kinds for item in items(kind)]
        return [_anchored(v, inner) for v in value]
    paths = any(m is Path for kind in kinds for m in members(kind))
    paths = paths or any("weights" in f for f in fields)
    return str(Path.cwd() / user_path(value)) if paths and isinstance(value, str) else value
