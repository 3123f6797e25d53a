"""The errors and warnings a user may meet; they derive from `GregCertError`, `GregCertWarning`.

The command line turns `UsageError` and its children into exit code 2 with the message as one line,
so a message names the field, the value found and what was expected.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """Text with every run of white space and control characters made one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def visible(text: str) -> str:
    """Text with what is no printable character written as an escape sequence of Python.

    Names come from files of others: what a terminal would obey, or take for a new line, is shown.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, most: int = 120) -> str:
    """A value as an error shows it: on one line, of at most that many characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of an integer of thousands of digits; of what is deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


_LONGEST = 2000  # characters of a message, which may quote a name of thousands


class GregCertError(Exception):
    """Root of every error that greg-cert raises on purpose; its text is one line."""

    def __str__(self) -> str:
        """The message; what it quotes may hold line breaks, and what terminals obey."""
        text = one_line(super().__str__())
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


class UsageError(GregCertError, ValueError):
    """What the user supplied is wrong: an argument, a configuration or a file."""


class ConfigError(UsageError):
    """A configuration field is missing, unknown, or has a value it cannot have."""


class DataError(UsageError):
    """A data source is missing, empty, truncated, mislabelled or of the wrong shape."""


class UnsupportedModelError(UsageError):
    """A model has a layer that cannot be bounded soundly; the message names the layer."""


class RunError(UsageError):
    """A run folder is missing, incomplete, corrupt, or does not fit the request."""


class TrainingError(GregCertError):
    """Training had to stop, for example because a loss term was not finite."""


class EngineError(GregCertError):
    """A bound-propagation engine is missing or failed."""


class GregCertWarning(UserWarning):
    """Root of every warning; the command line shows each as a note of one line."""


class UncheckedFileWarning(GregCertWarning):
    """A file of an earlier version holds no digest, so that nothing tells whether it is whole."""


class DamagedFileWarning(GregCertWarning):
    """A file is not as it was written, and is replaced: what it should hold is computed anew."""


class DataWarning(GregCertWarning):
    """A data source can be read, but perhaps does not hold what it seems to."""


class PenaltyWarning(GregCertWarning):
    """A gradient penalty is too small a part of the loss to change much."""
