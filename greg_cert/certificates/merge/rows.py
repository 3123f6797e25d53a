"""The rows of one run that every verification has, and what of it is left out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import pandas as pd

from greg_cert.certificates.folder import Tables
from greg_cert.certificates.results import Results
from greg_cert.certificates.score_file import OOD
from greg_cert.errors import RunError

ID = "id"

Keys = frozenset[tuple[Hashable, ...]]
_KEYS = (["index"], ["dataset", "index"], ["dataset", "index", "radius"])
"""What names a row of one run, in each of `Tables` but the last: scores need no partner."""


@dataclass(frozen=True)
class Rows:
    """The rows of one run that are kept, in the order of the first file."""

    tables: Tables
    left_out: dict[str, int]  # samples by set (`id`, `ood/NAME`), where there are any
    violations_left_out: int  # certificates left out that an attack contradicts


def renamed(tables: Tables, run: str) -> Tables:
    """The same rows under another name of the run."""
    return Tables(*(table.assign(run=run) for table in tables))


def same_rows(one: Tables, other: Tables) -> bool:
    """Whether all certificates and bounds are the same."""
    pairs = list(zip(one, other, strict=True))[: len(_KEYS)]
    return all(a.equals(b) or (a.empty and b.empty) for a, b in pairs)


def shared_keys(parts: Sequence[Results]) -> list[Keys]:
    """The rows that every run of every verification has, in each table of certificates and bounds.

    Raises:
        RunError: there is no such ID sample.
    """
    tables = [results.tables(run) for results in parts for run in results.runs]
    shared = [
        frozenset[tuple[Hashable, ...]].intersection(
            *(frozenset(_keys(table, columns)) for table in one_a_run)
        )
        for columns, one_a_run in zip(_KEYS, zip(*tables, strict=True), strict=False)
    ]
    if not shared[0]:
        folders = ", ".join(str(results.folder) for results in parts)
        raise RunError(f"column index: expected samples that all of {folders} have, but got none")
    return shared


def kept_rows(results: Results, run: str, shared: Sequence[Keys]) -> Rows:
    """The rows of one run that are shared."""
    *paired, scores = results.tables(run)
    kept, gone = [], []
    for table, columns, keys in zip(paired, _KEYS, shared, strict=True):
        here = pd.Series([key in keys for key in _keys(table, columns)], table.index, dtype=bool)
        kept.append(table[here].reset_index(drop=True))
        gone.append(table[~here])
    certificates, ood, _ = gone
    left = {ID: len(certificates)}
    if len(ood):
        left |= {f"{OOD}{name}": len(rows) for name, rows in ood.groupby("dataset", sort=False)}
    return Rows(
        Tables(*[*kept, scores.reset_index(drop=True)]),
        {name: count for name, count in left.items() if count},
        violations(certificates, ood),
    )


def violations(*tables: pd.DataFrame) -> int:
    """Certificates in these tables that an attack contradicts."""
    return sum(int(table["violation"].sum()) for table in tables if len(table))


def _keys(table: pd.DataFrame, columns: list[str]) -> list[tuple[Hashable, ...]]:
    return list(table[columns].itertuples(index=False, name=None)) if len(table) else []
