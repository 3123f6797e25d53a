"""The one sentence in which every data error is told: field, expectation, value, remedy."""

from __future__ import annotations

from greg_cert.errors import DataError

_LONGEST_VALUE = 200


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
