"""HTML elements from Python values; text is escaped unless it was made here."""

from __future__ import annotations

from html import escape
from typing import TypeAlias


class Html(str):
    """Text that is already HTML. Only `tag`, `join` and literals of this package make it."""

    __slots__ = ()


Child: TypeAlias = "str | Html | list[Html] | None"

_VOID = frozenset({"img", "meta", "br"})


def visible(value: str) -> str:
    r"""Text of several lines whose other control characters are spelled, as in \u202e.

    They would be lost, or turn the order of what stands beside them.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _spelled(c) for c in value)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def text(value: str) -> Html:
    """A value as HTML text: what HTML treats specially is escaped, what cannot be seen spelled."""
    return value if isinstance(value, Html) else Html(escape(visible(value), quote=True))


def join(parts: list[Html], separator: str = "\n") -> Html:
    """HTML parts one after another."""
    return Html(separator.join(parts))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """One element; an attribute that is None or False is left out, `class_` stands for `class`.

    Args:
        name: the element's name, a literal of this package.
        *children: strings are escaped, `Html` is not, lists are joined, None is skipped.
        **attributes: values are escaped; underscores in names become hyphens.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        word = key.rstrip("_").replace("_", "-")
        words.append(
            word if value is True else f'{word}="{escape(visible(str(value)), quote=True)}"'
        )
    if name in _VOID:
        return Html(f"<{' '.join(words)}>")
    inner = "".join(
        join(child, "") if isinstance(child, list) else text(child)
        for child in children
        if child is not None
    )
    return Html(f"<{' '.join(words)}>{inner}</{name}>")
