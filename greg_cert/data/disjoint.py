"""Refusal of configurations in which one source serves two roles that must be kept apart."""

from __future__ import annotations

from itertools import combinations

from greg_cert.data.reject import data_error
from greg_cert.data.schema import DataConfig
from greg_cert.data.sources.base import DataSource


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
    roles: list[tuple[str, str, DataSource]] = [("id", f"{field}.id", config.id)]
    if config.id_test is not None:
        roles.append(("id", f"{field}.id_test", config.id_test))
    roles += [("aux", f"{field}.{key}", source) for key, source in config.auxiliary().items()]
    roles += [("ood", f"{field}.ood[{i}]", source) for i, source in enumerate(config.ood)]
    for (role, first, one), (other_role, second, other) in combinations(roles, 2):
        common = None if role == other_role else _common(one, other, fields=(first, second))
        if common is not None:
            raise data_error(second, f"a source that shares nothing with {first}", common)


def _common(one: DataSource, other: DataSource, *, fields: tuple[str, str]) -> str | None:
    """What two sources have in common, in words, or None."""
    if one.holds() and other.holds():
        both = sorted(one.holds() & other.holds())
        return f"{', '.join(both)} in both" if both else None
    here, there = one.place(), other.place()
    if here is None or there is None:
        return None
    if here != there:
        if here in there.parents or there in here.parents:
            return f"{str(there)!r} and {str(here)!r}, of which one lies inside the other"
        return None
    mine, others = one.chosen_classes(field=fields[0]), other.chosen_classes(field=fields[1])
    shared: list[str] = []
    if mine is not None and others is not None:
        if mine.disjoint_from(others):
            return None
        if mine.listed and others.listed:
            shared = sorted(set(mine.names) & set(others.names))
    return f"{f'class {shared[0]!r} of ' if shared else ''}{str(here)!r} in both"
