"""What is wrong with a configuration, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from greg_cert.config.fields import all_sections, dotted, items, nearest, sections, tag_of
from greg_cert.data.schema import ONE, SEVERAL
from greg_cert.errors import shown

_Place = tuple[int | str, ...]
_MEMBERS = ("float", "constrained-float", "literal[")
_NAMED = 4  # unknown keys


def one_line(
    error: ValidationError, root: type[BaseModel], others: Sequence[type[BaseModel]]
) -> str:
    """The unknown keys, or else the first problem, as `field: expected …, but got …`.

    `root` is the record that was to be; `others` are those in which an unknown key may be known.
    """
    problems = _own_problems(error)
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    hints = [_hint(p["loc"], root, others) for p in unknown]
    meant = {(*p["loc"][:-1], near) for p, (near, _) in zip(unknown, hints, strict=True)}
    # A key that is missing under one name, as it stands there under another.
    left = [p for p in problems if p["type"] != "missing" or p["loc"] not in meant]
    if not unknown:
        return _told(left[0], root) + _more(len(left) - 1)
    keys = [dotted(_written(p["loc"], root)) for p in unknown]
    if len(unknown) == 1:
        return f"{keys[0]}: unknown key{hints[0][1] and '; ' + hints[0][1]}" + _more(len(left) - 1)
    named = [f"{k} ({h})" if h else k for k, (_, h) in zip(keys, hints, strict=True)][:_NAMED]
    return f"unknown keys {', '.join(named)}" + _more(len(left) - len(named))


def _own_problems(error: ValidationError) -> list[Any]:
    """Without those of a list or section that only follow from one inside of it."""
    found = error.errors()
    inside = {p["loc"][:k] for p in found for k in range(len(p["loc"]))}
    return [p for p in found if p["loc"] not in inside]


def _told(problem: Any, root: type[BaseModel]) -> str:
    field = dotted(_written(problem["loc"], root)) or "config"
    if problem["type"] == "missing":
        return f"{field}: required, but missing"
    message, found = problem["msg"].removeprefix("Value error, "), problem["input"]
    but = "" if isinstance(found, dict) else f", but got {shown(found)}"
    return f"{field}: {message[0].lower()}{message[1:]}{but}"


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def _written(place: _Place, root: type[BaseModel]) -> list[int | str]:
    """The place as the user wrote it: the members of a union stand in it, which are no keys."""
    return [part for part, _ in _walk(place, root)]


def _walk(place: _Place, root: type[BaseModel]) -> list[tuple[int | str, list[type[BaseModel]]]]:
    """Each key or position that the user wrote, with the records that it stands in."""
    found: list[tuple[int | str, list[type[BaseModel]]]] = []
    kinds: list[Any] = [root]
    for part in place:
        here = [section for kind in kinds for section in sections(kind)]
        if part in (ONE, SEVERAL):
            continue
        if isinstance(part, int):
            found.append((part, here))
            kinds = [item for kind in kinds for item in items(kind)]
        elif tagged := [s for s in here if len(here) > 1 and tag_of(s) == part]:
            kinds = list(tagged)
        elif here or not part.startswith(_MEMBERS):
            found.append((part, here))
            kinds = [s.model_fields[part].annotation for s in here if part in s.model_fields]
    return found


def _hint(
    place: _Place, root: type[BaseModel], others: Sequence[type[BaseModel]]
) -> tuple[str | None, str]:
    """The key that an unknown one stands for, where one is near, and what to say of it."""
    (*_, (given, here)) = _walk(place, root)
    given = str(given)
    if near := nearest(given, [name for section in here for name in section.model_fields]):
        return near, f"did you mean {near!r}?"
    kinds = all_sections(root).union(*map(all_sections, others))
    if any(given in kind.model_fields for kind in kinds):
        return None, f"`greg-cert config schema` has {given!r} in another section"
    return None, ""
