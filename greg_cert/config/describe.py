"""What a configuration may hold: keys with values, defaults and meanings, and a JSON Schema.

Meanings are the docstrings of the records' fields, so that they are told once.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from greg_cert.config.fields import items, nearest, sections, tag_of
from greg_cert.errors import ConfigError

_WORDS = {
    "int": "integer",
    "float": "number",
    "str": "text",
    "bool": "true | false",
    "NoneType": "null",
    "Path": "path",
    "PurePosixPath": "path",
    "dict": "mapping",
    "Any": "anything",
}


@dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    key: str  # where it stands, as `train.stages[].epochs`
    values: str  # what it takes, in words
    default: str  # as YAML has it; "required" where there is none
    meaning: str


def keys_of(record: type[BaseModel], section: str = "") -> list[Key]:
    """Every key of a record and of the sections in it, in their order, or of one part alone.

    Raises:
        ConfigError: where there is no such part as `section`.
    """
    found = _keys(record, "")
    if not section:
        return found
    wanted = re.sub(r"\[\d*\]", "", section)
    plain = {k: k.key.replace("[]", "") for k in found}
    kept = [k for k in found if f"{plain[k]}.".startswith(f"{wanted}.")]
    if not kept:
        near = nearest(wanted, dict.fromkeys(plain.values()))
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(
            f"section: expected a part of the configuration, but got {section!r}{hint}"
        )
    return kept


def json_schema(record: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a record, with the meanings of its keys as descriptions."""
    schema = record.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        if "description" in part:
            part["description"] = part["description"].partition("\n")[0]
        for told in part.get("properties", {}).values():
            if "description" in told:
                told["description"] = _one_line(told["description"])
    return schema


def _keys(record: type[BaseModel], before: str) -> list[Key]:
    found = []
    for name, field in record.model_fields.items():
        key = f"{before}.{name}" if before else name
        found.append(
            Key(key, _values(field.annotation), _default(field), _one_line(field.description))
        )
        inner: dict[str, dict[str, Key]] = {}  # by key, then by the kind of a union
        parts = [(key, kind) for kind in sections(field.annotation)]
        if not parts:  # a list of what may stand alone, too, has the same keys
            parts = [(f"{key}[]", s) for item in items(field.annotation) for s in sections(item)]
        for where, kind in parts:
            for one in _keys(kind, where):
                inner.setdefault(one.key, {})[tag_of(kind) or ""] = one
        found += [_joined(kinds, len(parts)) for kinds in inner.values()]
    return found


def _joined(kinds: Mapping[str, Key], of: int) -> Key:
    """One key of several of the `of` kinds of a union, by their names; says which have it."""
    meanings: dict[str, list[str]] = {}
    for tag, one in kinds.items():
        meanings.setdefault(one.meaning, []).append(tag)
    told = [
        meaning if len(tags) == of else f"Of {', '.join(tags)}{': ' * bool(meaning)}{meaning}"
        for meaning, tags in meanings.items()
    ]
    values = dict.fromkeys(v for one in kinds.values() for v in one.values.split(" | "))
    defaults = dict.fromkeys(one.default for one in kinds.values())
    key = next(iter(kinds.values())).key
    return Key(key, " | ".join(values), " | ".join(defaults), " ".join(told))


def _values(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_values(a) for a in arguments))
    if origin in (tuple, list):
        inner = dict.fromkeys(_values(a) for a in arguments if a is not Ellipsis)
        return f"list of {' | '.join(inner)}"
    if sections(annotation):
        return "section"
    name = getattr(annotation, "__name__", str(annotation))
    return _WORDS.get(name, name)


def _default(field: FieldInfo) -> str:
    kind = field.annotation
    tag = typing.get_origin(kind) is Literal and len(typing.get_args(kind)) == 1  # of a union
    if field.is_required() or tag:
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    plain = value is None or isinstance(value, bool) or value in ((), [], {})
    return json.dumps(value) if plain else str(value)


def _one_line(meaning: str | None) -> str:
    return " ".join((meaning or "").split())
