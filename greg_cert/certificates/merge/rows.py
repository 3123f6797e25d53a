"""The rows of one run that every verification has, and what of it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from greg_cert.certificates.results import Results
from greg_cert.certificates.score_file import OOD
from greg_cert.errors import RunError

ID = "id"


@dataclass(frozen=True)
class Shared:
    """What all verifications have.

    Attributes:
        ids: indices of ID samples.
        ood: OOD samples, as (dataset, index).
        bounds: bounds of OOD scores, as (dataset, index, radius).
    """

    ids: frozenset[int]
    ood: frozenset[tuple[str, int]]
    bounds: frozenset[tuple[str, int, float]]


@dataclass(frozen=True)
class Rows:
    """The rows of one run, in the order of the first file.

    Attributes:
        certificates: of ID samples.
        ood: of OOD samples, or None.
        ood_scores: bounds of their scores, or None.
        test_scores: scores of all test samples, or None; they need no partner.
        left_out: how many samples are left out by set (`id`, `ood/NAME`), where there are any.
        violations_left_out: certificates left out that an attack contradicts.
    """

    certificates: pd.DataFrame
    ood: pd.DataFrame | None
    ood_scores: pd.DataFrame | None
    test_scores: pd.DataFrame | None
    left_out: dict[str, int]
    violations_left_out: int

    @property
    def violations(self) -> int:
        """Certificates kept that an attack contradicts."""
        frames = (self.certificates, self.ood)
        return sum(int(frame["violation"].sum()) for frame in frames if frame is not None)

    def renamed(self, run: str) -> Rows:
        """The same rows under another name of the run."""
        frames = (self.certificates, self.ood, self.ood_scores, self.test_scores)
        certificates, *others = (f if f is None else f.assign(run=run) for f in frames)
        assert certificates is not None
        return replace(
            self,
            certificates=certificates,
            ood=others[0],
            ood_scores=others[1],
            test_scores=others[2],
        )

    def equal(self, other: Rows) -> bool:
        """Whether all certificates and bounds are the same."""
        pairs = (
            (self.certificates, other.certificates),
            (self.ood, other.ood),
            (self.ood_scores, other.ood_scores),
        )
        return all(a is b if a is None or b is None else a.equals(b) for a, b in pairs)


def shared_keys(parts: Sequence[Results]) -> Shared:
    """The samples that every run of every verification has.

    Raises:
        RunError: there is no such ID sample.
    """
    ids: set[int] | None = None
    ood: set[tuple[str, int]] | None = None
    bounds: set[tuple[str, int, float]] | None = None
    for results in parts:
        for run in results.runs:
            own = set(results.of(run)["index"].tolist())
            ids = own if ids is None else ids & own
            keys = _keys(results.ood, run, ["dataset", "index"])
            ood = keys if ood is None else ood & keys
            keys = _keys(results.ood_scores, run, ["dataset", "index", "radius"])
            bounds = keys if bounds is None else bounds & keys
    if not ids:
        folders = ", ".join(str(results.folder) for results in parts)
        raise RunError(f"column index: expected samples that all of {folders} have, but got none")
    return Shared(frozenset(ids), frozenset(ood or ()), frozenset(bounds or ()))


def kept_rows(results: Results, run: str, shared: Shared) -> Rows:
    """The rows of one run that are shared."""
    frame = results.of(run)
    here = frame["index"].isin(shared.ids)
    left = {ID: int((~here).sum())}
    broken = int(frame.loc[~here, "violation"].sum())
    ood, gone = _split(results.ood, run, ["dataset", "index"], shared.ood)
    if gone is not None:
        broken += int(gone["violation"].sum())
        left |= {f"{OOD}{name}": len(rows) for name, rows in gone.groupby("dataset", sort=False)}
    bounds, _ = _split(results.ood_scores, run, ["dataset", "index", "radius"], shared.bounds)
    scores = results.test_scores
    if scores is not None:
        scores = scores[scores["run"] == run].reset_index(drop=True)
    return Rows(
        frame[here].reset_index(drop=True),
        ood,
        bounds,
        None if scores is None or scores.empty else scores,
        {name: count for name, count in left.items() if count},
        broken,
    )


def _keys(frame: pd.DataFrame | None, run: str, columns: list[str]) -> set[tuple]:  # type: ignore[type-arg]
    if frame is None:
        return set()
    return set(frame.loc[frame["run"] == run, columns].itertuples(index=False, name=None))


def _split(
    frame: pd.DataFrame | None,
    run: str,
    columns: list[str],
    shared: frozenset[tuple],  # type: ignore[type-arg]
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """The run's rows that are shared and the others; None where there are none."""
    if frame is None:
        return None, None
    rows = frame[frame["run"] == run]
    here = pd.Series(
        [key in shared for key in rows[columns].itertuples(index=False, name=None)],
        index=rows.index,
        dtype=bool,
    )
    kept, gone = (rows[mask].reset_index(drop=True) for mask in (here, ~here))
    return None if kept.empty else kept, None if gone.empty else gone
