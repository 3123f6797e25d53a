"""YAML as values, where a key that stands twice in one mapping is an error.

PyYAML takes the last one in silence, for whole sections too; YAML itself allows none. JSON is YAML,
so this reads it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


class DuplicateKey(yaml.YAMLError):
    """Two values for one key; the message says which and in what lines."""


def load_yaml(text: str) -> Any:
    """The plain values in a YAML document; nothing in it is executed.

    A key may stand beside a merge (`<<`) that brings the same one: it goes before it, as YAML says.

    Raises:
        yaml.YAMLError: it is not valid, or a key stands twice in one mapping.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        for path, first, second in _repeated(loader, node, "", set()):
            lines = f"lines {first} and {second}" if first != second else f"line {first}"
            raise DuplicateKey(f"the key {path} twice, in {lines}")
        return loader.construct_document(node)
    except (ValueError, RecursionError) as error:  # a date such as 2020-99-99; a thousand brackets
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _repeated(
    loader: yaml.SafeLoader, node: Node, path: str, seen: set[int]
) -> Iterator[tuple[str, int, int]]:
    """Path and both lines of each key that repeats another of its mapping."""
    if id(node) in seen:  # an alias, perhaps of a section around it
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
                if name in lines:
                    yield here, lines[name], line
                lines[name] = line
            yield from _repeated(loader, value, here, seen)
