"""Refusal of configurations in which one source serves two roles that must be kept apart."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from greg_cert.data.files.classes import class_choice
from greg_cert.data.reject import data_error
from greg_cert.data.schema import ArraySource, DataConfig, FolderSource, Source, TorchvisionSource
from greg_cert.data.sources.pictures import GROUPS
from greg_cert.data.sources.torchvision_sets import home


def check_disjoint(config: DataConfig, *, field: str = "data") -> None:
    """Refuse a source that plays two of the roles in-distribution, auxiliary and OOD test.

    Two sources are the same if they draw on a bundled picture in common, if one's file or folder
    is, or lies inside, the other's, or if they are the same split of a torchvision set. Folders
    inside an archive count as folders. One folder may serve two roles if the classes listed, or
    left out, show that no class serves both.

    Raises:
        DataError: Naming both fields and what they have in common, or a list of classes that cannot
            be read.
    """
    roles: list[tuple[str, str, Source]] = [("id", f"{field}.id", config.id)]
    if config.id_test is not None:
        roles.append(("id", f"{field}.id_test", config.id_test))
    if config.aux is not None:
        roles.append(("aux", f"{field}.aux", config.aux))
    roles += [("ood", f"{field}.ood[{i}]", source) for i, source in enumerate(config.ood)]
    for (role, first, one), (other_role, second, other) in combinations(roles, 2):
        common = None if role == other_role else _common(one, other, fields=(first, second))
        if common is not None:
            raise data_error(second, f"a source that shares nothing with {first}", common)


def _common(one: Source, other: Source, *, fields: tuple[str, str]) -> str | None:
    """What two sources have in common, in words, or None."""
    if isinstance(one, TorchvisionSource) and isinstance(other, TorchvisionSource):
        same = (one.dataset, one.split) == (other.dataset, other.split)
        return f"{one.dataset}'s {one.split} split in both" if same else None
    pictures = sorted(_pictures(one) & _pictures(other))
    if pictures:
        return f"{', '.join(pictures)} in both"
    here, there = _place(one), _place(other)
    if here is None or there is None:
        return None
    if here == there:
        if not (isinstance(one, FolderSource) and isinstance(other, FolderSource)):
            return f"{str(here)!r} in both"
        mine, others = (
            class_choice(source, field=field)
            for source, field in zip((one, other), fields, strict=True)
        )
        if mine.disjoint_from(others):
            return None
        shared = (
            sorted(set(mine.names) & set(others.names)) if mine.listed and others.listed else []
        )
        return f"{f'class {shared[0]!r} of ' if shared else ''}{str(here)!r} in both"
    if here in there.parents or there in here.parents:
        return f"{str(there)!r} and {str(here)!r}, of which one lies inside the other"
    return None


def _pictures(source: Source) -> set[str]:
    if source.source == "digits":
        return {"sklearn/digits"}
    return set(GROUPS.get(source.source, ()))


def _place(source: Source) -> Path | None:
    if isinstance(source, FolderSource):
        return source.path.expanduser().resolve() / (source.inside or "")
    if isinstance(source, ArraySource):
        return source.path.expanduser().resolve()
    return home(source).resolve() if isinstance(source, TorchvisionSource) else None
