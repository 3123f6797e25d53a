"""The command line: its first word, and its errors as lines and exit codes.

Nothing is imported here that takes time, so that a command answers at once.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import lazy_loader

from greg_cert.launcher import first_process

if TYPE_CHECKING:
    from greg_cert.cli.commands import app

__all__ = ["app", "main"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"commands": ["app"]})

_IMPORT_MUCH = {
    *("compare", "demo", "doctor", "evaluate", "predict", "report", "train", "tune", "verify"),
}
_NO_MEMORY = re.compile(r"allocate memory|out of memory", re.IGNORECASE)
_SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(BaseException):
    """A signal that ends the command; the command line of typer would end without a word."""


def main() -> None:
    """Run the command line; exit 2 for an error of input, 128 + N for a signal, else 1."""
    try:
        with _stopped_by_signals():
            _run()
    except Stopped as stopped:
        sys.exit(_last_word(stopped.args[0]))


def _run() -> None:
    if sys.stderr.isatty() and (said := first_word(sys.argv[1:])):
        sys.stderr.write(f"{said}\n")
        sys.stderr.flush()
    from greg_cert.cli import screen
    from greg_cert.cli.commands import app
    from greg_cert.errors import GregCertError, UsageError, one_line

    for stream in (sys.stdout, sys.stderr):  # a name that its encoding lacks ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with screen.warnings_as_notes():
            app()
    except (GregCertError, OSError, MemoryError, RuntimeError) as error:
        if (line := _said_of(error)) is None:
            raise
        sys.stderr.write(f"greg-cert: error: {one_line(line)}\n")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _said_of(error: Exception) -> str | None:
    """What is said of an error; None of one that only a fault of ours can raise."""
    from greg_cert.errors import GregCertError

    if isinstance(error, GregCertError):
        return str(error)
    if isinstance(error, OSError):
        why = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {why}" if error.filename else why
    no_memory = isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))
    if no_memory:
        return f"not enough memory: {str(error) or type(error).__name__}"
    return str(error) if str(error).startswith("Symlink loop") else None  # of a path's resolve


def first_word(arguments: Sequence[str]) -> str:
    """What is said before the imports, which take seconds; empty where nothing is to be said."""
    command = arguments[0] if arguments else ""
    if command not in _IMPORT_MUCH or not {"-q", "--quiet", "--help"}.isdisjoint(arguments):
        return ""
    return f"greg-cert {command}: loading libraries ..." if first_process() else ""


def how_to_go_on(arguments: Sequence[str]) -> str:
    """What a stopped command is told to be gone on with; empty where it begins anew."""
    command, typed = arguments[0] if arguments else "", ["greg-cert", *arguments]
    if command in ("train", "tune"):
        typed += [] if "--resume" in arguments else ["--resume"]
    elif command != "verify" or "--restart" in arguments:
        return ""
    return f"; go on with: {shlex.join(typed)}"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let signals end the command as an error would; those that are ignored stay so."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {n: found for n in _SIGNALS if (found := signal.getsignal(n)) in usual}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            # A module that is being imported may take the error for its own, and nothing is lost.
            code = _last_word(number)
            sys.stderr.write("\x1b[?25h" if sys.stderr.isatty() else "")  # the cursor of a bar
            sys.stderr.flush()
            os._exit(code)
        frame = frame.f_back
    raise Stopped(number)


def _last_word(number: int) -> int:
    """The exit code, once it is said that a signal ended the command and how it goes on."""
    if first_process():
        sys.stderr.write(f"greg-cert: {_SIGNALS[number]}{how_to_go_on(sys.argv[1:])}\n")
    return 128 + number
