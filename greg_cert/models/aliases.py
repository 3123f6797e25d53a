"""What other code bases call the modules of our models.

An alias table maps a module path elsewhere to the path here, such as `layer1.0` to `body.3`. A
parameter goes by the longest prefix of its name that the table has; the empty path stands for the
whole network. Each architecture lists its own aliases beside its layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

HEADS: tuple[str, ...] = ("fc", "linear", "classifier", "head", "classifier.1", "heads.head")
HEAD_ALIASES: Mapping[str, str] = dict.fromkeys(HEADS, "head")

# What wrappers put before every name: DataParallel, torch.compile, Lightning modules.
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "backbone", "encoder")


def own_name(name: str, aliases: Mapping[str, str]) -> str | None:
    """The dotted name here of a parameter that another code base calls `name`.

    None where no prefix of `name` is in the table of aliases.
    """
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        here = aliases.get(".".join(parts[:length]))
        if here is not None:
            return ".".join([here, *parts[length:]])
    return None


def renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """`name` with the module path it begins with replaced, for each pair (old, new) in turn.

    An empty new path takes the old one away; an empty old one puts the new before every name.
    """
    for old, new in pairs:
        if begins_with(name, old):
            rest = name[len(old) :].lstrip(".")
            name = ".".join(part for part in (new, rest) if part)
    return name


def begins_with(name: str, path: str) -> bool:
    """Whether `path` is `name` or a module that holds it; the empty path holds everything.

    `layer1` does not hold `layer10.weight`.
    """
    return not path or f"{name}.".startswith(f"{path}.")


def most_common_prefix(names: Sequence[str]) -> str:
    """The prefix of `WRAPPERS` that more than half of the names share, or ""."""
    first = Counter(name.partition(".")[0] for name in names)
    wrapper, count = first.most_common(1)[0] if first else ("", 0)
    if wrapper not in WRAPPERS or 2 * count <= len(names):
        return ""
    return shared_prefix([name for name in names if begins_with(name, wrapper)])


def shared_prefix(names: Sequence[str]) -> str:
    """The longest prefix of `WRAPPERS` that all names share, such as `module._orig_mod.`, or ""."""
    prefix = ""
    while names:
        longer = [f"{prefix}{wrapper}." for wrapper in WRAPPERS]
        shared = [p for p in longer if all(name.startswith(p) for name in names)]
        if not shared:
            break
        prefix = shared[0]
    return prefix
