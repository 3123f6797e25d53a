"""YAML as values, where a key that stands twice in one mapping is an error.

PyYAML takes the last one in silence, for whole sections too; YAML itself allows none. JSON is YAML,
so this reads it as well. What no configuration needs is refused before it takes time or memory:
deep nesting, aliases of aliases that stand for millions of values, integers beyond 64 bits. So are
numbers of base 60 and 8: `12:30:45` would be 45045, and a class called 010 would be 8.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from greg_cert.errors import shown

MOST_DEEP, MOST_VALUES = 50, 100_000
_BITS = 63
# Of base 60 and 8; hexadecimal numbers can be taken for nothing else.
_OTHER_BASE = re.compile(r"[-+]?(?:[\d_]+(?::[\d_]+)+(?:\.[\d_]*)?|0[\d_]+)")


class Refused(yaml.YAMLError):
    """Not what a configuration may hold; the message says why, and in what line."""


class DuplicateKey(Refused):
    """Two values for one key; the message says which and in what lines."""


def load_yaml(text: str) -> Any:
    """The plain values in a YAML document; nothing in it is executed.

    A key may stand beside a merge (`<<`) that brings the same one: it goes before it, as YAML says.

    Raises:
        yaml.YAMLError: it is not valid or too large, a key stands twice in one mapping, or a
            section within itself.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        for path, first, second in _repeated(loader, node, "", set()):
            lines = f"lines {first} and {second}" if first != second else f"line {first}"
            raise DuplicateKey(f"the key {path} twice, in {lines}")
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's, whose every error is a `YAMLError`."""

    _deep = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._deep += 1
        if self._deep > MOST_DEEP:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _refused(f"at most {MOST_DEEP} levels of nesting, but got more", mark)
        node = super().compose_node(parent, index)
        self._deep -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of a date such as 2024-02-30, of !!int abc, and so on
            kind = node.tag.rpartition(":")[2]
            found = f"expected a value of the kind {kind}, but got {shown(node.value)}"
            raise _refused(found, node.start_mark) from error
        if isinstance(value, int | float) and _OTHER_BASE.fullmatch(text := str(node.value)):
            found = f"expected a decimal number, or quotes, but got {text}, which is {value}"
            raise _refused(found, node.start_mark)
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise _refused("expected an integer of at most 64 bits, but got more", node.start_mark)
        return value


def _refused(what: str, mark: yaml.Mark) -> Refused:
    return Refused(f"{what}, in line {mark.line + 1}, column {mark.column + 1}")


def _count(node: Node, counted: dict[int, int]) -> int:
    """How many values a node stands for with its aliases written out.

    Raises:
        yaml.YAMLError: there are too many, a section stands within itself, or a text holds what no
            file can.
    """
    if id(node) in counted:
        if not counted[id(node)]:
            raise _refused("expected no section within itself, but got one", node.start_mark)
        return counted[id(node)]
    counted[id(node)] = 0  # until all within is counted
    total = 1
    if isinstance(node, ScalarNode):
        if "\0" in node.value or any("\ud800" <= c <= "\udfff" for c in node.value):
            found = f"expected text without NUL and surrogates, but got {shown(node.value)}"
            raise _refused(found, node.start_mark)
    else:
        pairs = isinstance(node, MappingNode)
        inner = (one for pair in node.value for one in pair) if pairs else node.value
        for one in inner:
            total += _count(one, counted)
            if total > MOST_VALUES:
                what = f"expected at most {MOST_VALUES} values with aliases written out"
                raise _refused(f"{what}, but got more", node.start_mark)
    counted[id(node)] = total
    return total


def _repeated(
    loader: yaml.SafeLoader, node: Node, path: str, seen: set[int]
) -> Iterator[tuple[str, int, int]]:
    """Path and both lines of each key that repeats another of its mapping."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for i, item in enumerate(node.value):
            yield from _repeated(loader, item, f"{path}[{i}]", seen)
    elif isinstance(node, MappingNode):
        lines: dict[Any, int] = {}
        for key, value in node.value:
            here, line = path, key.start_mark.line + 1
            if isinstance(key, ScalarNode):  # no other kind makes a plain mapping
                here = f"{path}.{key.value}" if path else key.value
                plain = key.tag.endswith((":merge", ":value"))  # << and =, which have no value
                # 1 and 0x1 are one key, "1" is another.
                name = key.value if plain else loader.construct_object(key)
                if isinstance(name, Hashable):  # else it is refused later
                    if name in lines:
                        yield here, lines[name], line
                    lines[name] = line
            yield from _repeated(loader, value, here, seen)
