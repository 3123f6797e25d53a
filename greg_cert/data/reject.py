"""The one sentence in which every data error is told: field, expectation, value, remedy."""

from __future__ import annotations

import os

from greg_cert.errors import DataError

_LONGEST_VALUE = 200
_SHARE = 0.5  # of the machine's memory that one set may fill


def data_error(field: str, expected: str, value: object, *, hint: str = "") -> DataError:
    """A one-line `DataError` that names the field, what it needs, what it had, and what to do.

    `field` is its path, such as ``data.ood[1].path``; `expected` is read after the word "expected";
    a `value` that is text is shown as it stands, any other by its `repr`; `hint` is a sentence.
    """
    shown = " ".join((value if isinstance(value, str) else repr(value)).split())
    if len(shown) > _LONGEST_VALUE:
        shown = shown[: _LONGEST_VALUE - 1] + "…"
    message = f"{field}: expected {expected}, but got {shown}"
    return DataError(f"{message}. {hint}" if hint else message)


def check_memory(field: str, size: int, *, hint: str) -> None:
    """Refuse a set of more bytes than half of this machine's memory, before any of it is there.

    Raises:
        DataError: names the field and both sizes; ends with the `hint`.
    """
    most = int(_SHARE * _memory())
    if size > most:
        expected = f"a set of at most {most / 2**30:.1f} GiB, half of this machine's memory"
        raise data_error(field, expected, f"{size / 2**30:.1f} GiB", hint=hint)


def _memory() -> int:
    """Bytes of memory that this machine has."""
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 40
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
