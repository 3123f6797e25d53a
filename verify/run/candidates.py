"""The runs that are verified side by side, and the sets of samples that all of them share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from greg_cert.data import DataSplits, Images
from greg_cert.runs.subjects import Subject, unique_names

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
    folder: Subject
    model: nn.Module

    @property
    def score(self) -> str:
        """The OOD score it was trained for, which γ is about."""
        return self.folder.config.score

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its results depend on: SHA-256 of the weights, and the network they are for."""
        network = {"name": self.folder.config.network, **self.folder.manifest["model"]}
        return {"weights": self.folder.weights_digest, "model": network}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `identity`: the same for a run under another name."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def candidates(
    runs: Sequence[Subject], baseline: Subject | None, device: torch.device
) -> list[Candidate]:
    """The runs in the order of the tables, the baseline first, with their networks on a device.

    Raises:
        RunError: for a run that is not complete, or that occurs twice.
    """
    ordered = list(runs)
    if baseline is not None:
        ordered = [baseline, *(r for r in ordered if r.path.resolve() != baseline.path.resolve())]
    names = unique_names(ordered)
    return [Candidate(n, r, r.load_model().to(device)) for n, r in zip(names, ordered, strict=True)]
