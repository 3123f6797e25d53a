"""Near and far OOD: which of the two an OOD test set is, beside an ID set.

Source: Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", 2023.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from greg_cert.data.schema import DataConfig
from greg_cert.data.sources.base import DataSource

Group = Literal["near", "far"]

_TINY = ("tinyimagenet", "tin")
_FAR = ("mnist", "svhn", "dtd", "textures", "places365", "places")
_IMAGENET: Mapping[Group, tuple[str, ...]] = {
    "near": ("ssbhard", "ninco"),
    "far": ("inaturalist", "dtd", "textures", "openimageo"),
}
# Names in lower case, with letters and digits alone.
_OPENOOD: Mapping[str, Mapping[Group, tuple[str, ...]]] = {
    "cifar10": {"near": ("cifar100", *_TINY), "far": _FAR},
    "cifar100": {"near": ("cifar10", *_TINY), "far": _FAR},
    "imagenet200": _IMAGENET,
    "imagenet1k": _IMAGENET,
    "imagenet": _IMAGENET,
}


def ood_groups(config: DataConfig) -> dict[str, Group | None]:
    """For each OOD test set `near`, `far`, or None where neither is said or known.

    What the configuration says comes first; then OpenOOD's grouping, by the names of both sets.
    """
    known = _OPENOOD.get(_plain(_kind(config.id)), {})
    found: dict[str, Group | None] = {}
    for source in config.ood:
        names = {_plain(source.title), _plain(_kind(source))}
        listed = (group for group, members in known.items() if names & set(members))
        found[source.title] = source.group or next(listed, None)
    return found


def _kind(source: DataSource) -> str:
    """Name of the data set, whatever the user calls it."""
    return str(getattr(source, "dataset", source.title))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
