"""What somebody may put where a file is read: odd values, damaged bytes, and no file at all."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from greg_cert.errors import GregCertError

_PATIENCE = 30  # seconds of one example, which takes milliseconds


def examples(count: int) -> settings:
    """So many examples, the same in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class _Hangs(BaseException):
    """Raised by the alarm; no handler of errors takes it for its own."""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def works_or_refuses(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it refuses in one line; all else is an error of the test."""
    with _alarm(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except GregCertError as error:
            said = str(error)
    assert said
    assert said.isprintable(), said
    assert len(said) < 4000, said[:200]
    return None


DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]
VALUES = st.sampled_from(
    [
        *(None, True, -1, 0, 1.5, 1e300, 1e-300, 10**12, 10**30, float("nan"), float("inf")),
        *("", "x", "\x1b[31m", "a\nb", "=1+1", "\u202e", "\0", "../../x", "x" * 5000, "1" * 5000),
        *([], {}, [1], {"a": 1}, [[]], {"\x1b": {}}, DEEP),
    ]
).map(copy.deepcopy)
"""Plain values that hardly any field can have."""


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document of plain values with a few of them replaced, removed or added."""
    found = {"": copy.deepcopy(document)}
    for _ in range(draw(st.integers(1, 2))):
        here: Any = found
        key: Any = ""
        for _ in range(draw(st.integers(1, 5))):
            if not isinstance(here[key], (dict, list)) or not here[key]:
                break
            here = here[key]
            keys = sorted(here, key=str) if isinstance(here, dict) else range(len(here))
            key = draw(st.sampled_from(keys))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if kind == "remove" and here is not found:
            del here[key]
        elif kind == "add" and isinstance(here, dict) and here is not found:
            here[draw(st.sampled_from(("x", "name", "\x1b", "")))] = draw(VALUES)
        else:
            here[key] = draw(VALUES)
    return found[""]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file cut short, with bytes changed, put in or left out, or of something else."""
    kind = draw(st.sampled_from(("cut", "change", "insert", "drop", "other")))
    if kind == "other":
        odd = (b"", b"\0", b"\xff\xfe", b"[" * 3000, b'{"a":' * 2000, b"PK\x03\x04", b"null", b"{}")
        return draw(st.sampled_from(odd))
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        if kind == "cut":
            return bytes(found[:at])
        if kind == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "drop":
            del found[at : at + draw(st.integers(1, 40))]
        elif found:
            found[at] = draw(st.integers(0, 255))
    return bytes(found)


OBSTACLES = ("gone", "empty", "folder", "fifo", "loop", "endless", "nothing")


def put_obstacle(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    if not path.is_symlink() and path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind in ("endless", "nothing"):
        path.symlink_to("/dev/zero" if kind == "endless" else "/dev/null")
