"""Options of a command that are settings of a verification, read off the fields of these."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from greg_cert.config.verification import VerifyConfig

_SHORT = {"smoothing_sigma": "sigma"}  # options whose names are not those of their settings
_NO_OPTION = {"options"}  # a mapping, which --set reaches


def offers(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each of these fields, or all, in place of `settings`.

    The command is called with `settings`, a mapping from names of fields to what the user gave;
    None where an option was not given.
    """
    chosen = names or tuple(n for n in VerifyConfig.model_fields if n not in _NO_OPTION)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.name == "settings":
                parameters += map(_option, chosen)
            else:
                parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

        @wraps(command)
        def run(**given: Any) -> None:
            command(settings={name: given.pop(name) for name in chosen}, **given)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def verify_settings(configured: VerifyConfig, **given: Any) -> VerifyConfig:
    """The run's own settings with what the user gave on top, validated again.

    Options come by field name: None where one was not given, and 0 where a count may be none: all
    samples, or a budget without end.

    Raises:
        UsageError: for a value out of range; names the option.
    """
    from pydantic import ValidationError

    from greg_cert.errors import UsageError

    values = configured.model_dump()
    values.update({k: v for k, v in given.items() if v is not None})
    if given.get("budget") is not None and given.get("seconds_per_sample") is not None:
        raise UsageError("expected --budget or --seconds-per-sample, but got both")
    if given.get("budget") is not None:
        values["seconds_per_sample"] = None
    for name, value in given.items():
        if value == 0 and _count_or_none(name):
            values[name] = None
    try:
        return VerifyConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # about several fields; the message names them
            raise UsageError(message) from error
        option = _flag(str(problem["loc"][0]))
        found = "" if "but got" in message else f", but got {problem['input']!r}"
        raise UsageError(f"{option}: {message}{found}") from error


def _option(name: str) -> inspect.Parameter:
    """The option of one field; what it takes and its help are those of the field."""
    described = re.sub(r"\s+", " ", VerifyConfig.model_fields[name].description or "").strip()
    described = described.replace("`", "")
    kinds = _kinds(name)
    if bool in kinds:
        annotation: Any = Annotated[bool | None, typer.Option(_flag(name), help=described)]
    elif _count_or_none(name):
        help_ = re.sub(r"\bNone\b", "0", described)
        annotation = Annotated[int | None, typer.Option(_flag(name), help=help_, min=0)]
    else:
        kind = str if str in kinds or tuple in kinds else float if float in kinds else int
        help_ = re.sub(r"; None[^.]*", "", described)
        annotation = Annotated[kind | None, typer.Option(_flag(name), help=help_)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _flag(name: str) -> str:
    return "--" + _SHORT.get(name, name).replace("_", "-")


def _count_or_none(name: str) -> bool:
    """Whether a field is a count that may be none, which 0 says on a command line."""
    return {int, NoneType} <= _kinds(name) and float not in _kinds(name)


def _kinds(name: str) -> set[Any]:
    """The plain types in the annotation of a field."""

    def plain(kind: Any) -> set[Any]:
        inner = get_args(kind)
        if getattr(kind, "__origin__", None) is tuple:
            return {tuple}
        if inner and isinstance(inner[0], str):
            return {str}  # a literal
        return set[Any]().union(*map(plain, inner)) if inner else {kind}

    return plain(VerifyConfig.model_fields[name].annotation)
