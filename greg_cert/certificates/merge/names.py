"""What the runs of several verifications are called side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Named(NamedTuple):
    """A run as one verification has it."""

    results: Path  # the verification folder, which may be that of another run
    name: str
    seed: int | None  # of its training, where that is known
    folder: Path | None = None  # its own, where that is recorded


def merged_names(runs: Sequence[Named]) -> list[str]:
    """A name for each run, all of them different; a name that occurs once is left as it is.

    Runs of one name are told apart by the seeds of their training where those differ, else by
    where their own folders differ; where those are not recorded, by where they were verified, in
    words that say so.
    """
    counts = Counter(run.name for run in runs)
    endings: dict[int, str] = {}
    for name, count in counts.items():
        if count > 1:
            same = [k for k, run in enumerate(runs) if run.name == name]
            endings |= dict(zip(same, _endings([runs[k] for k in same]), strict=True))
    taken = {name for name, count in counts.items() if count == 1}
    names = []
    for k, run in enumerate(runs):
        found = run.name if k not in endings else f"{run.name} ({endings[k]})"
        number = 2
        while k in endings and found in taken:
            found = f"{run.name} ({endings[k]}) #{number}"
            number += 1
        taken.add(found)
        names.append(found)
    return names


def _endings(runs: Sequence[Named]) -> list[str]:
    seeds = [run.seed for run in runs]
    if None not in seeds and len(set(seeds)) == len(seeds):
        return [f"seed {seed}" for seed in seeds]
    own = [run.folder for run in runs if run.folder is not None]
    if len(set(own)) == len(runs):
        return folder_labels(own)
    return [f"verified in {label}" for label in folder_labels([run.results for run in runs])]


def folder_labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart, without what all end in."""
    parts = [list(folder.resolve().parts) for folder in folders]
    if len(set(map(tuple, parts))) < len(parts):
        return [str(folder) for folder in folders]
    while len(parts) > 1 and len({tuple(p[-1:]) for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    depth = 1
    while len({tuple(p[-depth:]) for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) or "/" for p in parts]
