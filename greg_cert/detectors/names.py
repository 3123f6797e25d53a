"""Detectors as a user writes them, such as `ash:percentile=0.8`, judged without importing torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from greg_cert.detectors.catalogue import ALIASES, DETECTORS, Kind, Value
from greg_cert.errors import UsageError
from greg_cert.models.names import near_miss

_VALUES: Mapping[Kind, tuple[str, Callable[[Value], bool]]] = {
    "fraction": ("a number in [0, 1)", lambda v: 0.0 <= v < 1.0),
    "count": ("an integer >= 1", lambda v: v >= 1 and v == int(v)),
    "positive": ("a finite number > 0", lambda v: v > 0.0),
    "nonnegative": ("a finite number >= 0", lambda v: v >= 0.0),
}


def parse_detector(text: str) -> tuple[str, dict[str, Value]]:
    """The short name of a detector and the options set, of a text such as `ash:percentile=0.8`.

    Args:
        text: a name of `DETECTORS` or `ALIASES`, then perhaps `:` and `option=value` pairs with
            commas between them.

    Returns:
        The name in `DETECTORS`, and the options that the text sets, judged by `check_options`.

    Raises:
        UsageError: for an unknown name, an unknown option, or a value that it cannot have.
    """
    name, colon, rest = text.strip().partition(":")
    name = _known(name.strip())
    given: dict[str, Value] = {}
    for pair in rest.split(",") if colon else ():
        option, equals, value = (part.strip() for part in pair.partition("="))
        if not (option and equals and value):
            raise UsageError(
                f"detector {name}: expected option=value pairs after ':', but got {pair!r}"
            )
        if option in given:
            raise UsageError(f"detector {name}: expected {option} once, but got it twice")
        try:
            given[option] = float(value)
        except ValueError:
            raise UsageError(
                f"detector {name}: expected {option} to be a number, but got {value!r}"
            ) from None
    return name, check_options(name, given)


def _known(name: str) -> str:
    """The name in `DETECTORS` of a detector, of that name or an alias in any case of letters."""
    lower = name.lower()
    found = ALIASES.get(lower, lower)
    if found not in DETECTORS:
        hint = near_miss(lower, [*DETECTORS, *ALIASES])
        raise UsageError(f"detector: expected one of {', '.join(DETECTORS)}{hint}, got {name!r}")
    return found


def check_options(name: str, given: Mapping[str, object]) -> dict[str, Value]:
    """The options themselves, counts as int and the others as float, where all of them fit.

    `name` is one of `DETECTORS`; an option of value None is left out.

    Raises:
        UsageError: for an unknown option, or a value that it cannot have.
    """
    known = {option.name: option for option in DETECTORS[name].options}
    checked: dict[str, Value] = {}
    for key, value in given.items():
        if key not in known:
            choices = f"one of the options {', '.join(known)}" if known else "no option"
            hint = near_miss(key, list(known))
            raise UsageError(f"detector {name}: expected {choices}{hint}, but got {key!r}")
        if value is None:
            continue
        allowed, fits = _VALUES[known[key].kind]
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        if not (math.isfinite(number) and fits(number)):
            raise UsageError(f"detector {name}: expected {key} to be {allowed}, but got {value!r}")
        checked[key] = int(number) if known[key].kind == "count" else float(number)
    return checked
