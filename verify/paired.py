"""Several runs side by side: their names, and the data that all of them must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from greg_cert.data import DataSplits, Images, load_data
from greg_cert.errors import RunError
from greg_cert.models import Classifier
from greg_cert.records import RunFolder

ID = "id"
_OOD = "ood/"


def part_of(dataset: str) -> str:
    """The part of an OOD test set; that of the ID test split is `ID`."""
    return _OOD + dataset


def side_of(part: str) -> str:
    """`id` or `ood`."""
    return "id" if part == ID else "ood"


def dataset_of(part: str) -> str:
    """Name of the OOD test set of a part."""
    return part.removeprefix(_OOD)


def images_of(splits: DataSplits, part: str) -> Images:
    """The samples of a part."""
    return splits.test if part == ID else splits.ood[dataset_of(part)]


@dataclass(frozen=True)
class Candidate:
    """One run that is verified: what tables call it, its folder and its network."""

    name: str
    folder: RunFolder
    model: Classifier

    @property
    def score(self) -> str:
        """The OOD score it was trained for, which γ is about."""
        return self.folder.config.score

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its results depend on: SHA-256 of the weights, and the network they are for."""
        with self.folder.weights_file.open("rb") as stream:
            weights = hashlib.file_digest(stream, "sha256").hexdigest()
        sizes = self.folder.manifest["model"]
        return {"weights": weights, "model": {"name": self.folder.config.model.name, **sizes}}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `identity`: the same for a run under another name."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def candidates(runs: Sequence[RunFolder], baseline: RunFolder | None) -> list[Candidate]:
    """The runs in the order of the tables, the baseline first, with their networks.

    Raises:
        RunError: for a run that is not complete, or that occurs twice.
    """
    ordered = list(runs)
    if baseline is not None:
        ordered = [baseline, *(r for r in ordered if r.path.resolve() != baseline.path.resolve())]
    names = _names(ordered)
    return [Candidate(n, r, r.load_model()) for n, r in zip(names, ordered, strict=True)]


def common_data(runs: Sequence[RunFolder]) -> DataSplits:
    """The data of all runs, which must be one and the same, and what they were trained beside.

    Raises:
        RunError: where a calibration, test or OOD set differs from the first run's, or from what it
            was when the run was trained.
    """
    first = runs[0]
    splits = load_data(first.config.data)
    now = splits.fingerprints()
    for run in runs:
        then = run.manifest["data"]
        for part in now:
            if part in ("train", "aux"):
                continue
            if then.get(part) != now[part]:
                why = (
                    "has changed since training"
                    if run is first
                    else f"differs from that of {first.path}"
                )
                raise RunError(f"run: the {part} split of {run.path} {why}")
    return splits


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Titles where they differ, else folder names, else paths."""
    choices = (
        [r.config.title for r in runs],
        [r.path.resolve().name for r in runs],
        [str(r.path) for r in runs],
    )
    for names in choices:
        if len(set(names)) == len(names):
            return names
    raise RunError(f"runs: expected different runs, but got {choices[-1]}")
