"""Names that a user gives for what a report shows: runs, columns and figures."""

from __future__ import annotations

from collections.abc import Sequence

from greg_cert.config.fields import nearest
from greg_cert.errors import UsageError


def listed(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names, each once: a text that is none of the known ones is taken apart at its commas."""
    parts = [[text] if text in known else text.split(",") for text in given]
    return list(dict.fromkeys(name.strip() for part in parts for name in part if name.strip()))


def check_names(option: str, given: Sequence[str], known: Sequence[str], why: str = "") -> None:
    """Nothing, if every name is a known one; `why` is said of one that is not.

    Raises:
        UsageError: naming the option, and the known name that a wrong one is near to.
    """
    for name in given:
        if name not in known:
            near = None if why else nearest(name, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(
                f"{option}: expected one of {', '.join(known)}, but got {name!r}{why}{hint}"
            )
