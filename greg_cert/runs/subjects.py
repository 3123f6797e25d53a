"""What is evaluated and verified: a run that was trained here, or a model from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from greg_cert.config import ExperimentConfig, OwnModelConfig, revised
from greg_cert.config.overrides import parse_override
from greg_cert.data import DataSplits, load_data
from greg_cert.data.withheld import WITHHELD
from greg_cert.digests import DIGEST
from greg_cert.errors import ConfigError, RunError
from greg_cert.runs.own_model import OwnModel
from greg_cert.runs.records import RunFolder


class Subject(Protocol):
    """A model with its data: a `RunFolder` or an `OwnModel`."""

    @property
    def path(self) -> Path:
        """Where it was found."""

    @property
    def config(self) -> ExperimentConfig | OwnModelConfig:
        """Its description."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Sizes of the model (`model`), fingerprints of the data (`data`), and what made it."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""

    def load_model(self) -> nn.Module:
        """The model from raw pixels to logits, on the CPU in evaluation mode."""

    def load_data(self) -> DataSplits:
        """Its data."""


def open_subject(
    path: Path, overrides: Sequence[str] | None = None, trust: Sequence[str] | None = None
) -> Subject:
    """The run in a folder, or the model that a YAML file describes.

    `overrides` name other OOD test sets, as `data.ood[0].n=50` (`greg_cert.config.overrides`), and
    `trust` the factories that a run folder may name as its network.

    Raises:
        ConfigError: an override of anything else: the rest is what the model was trained with.
    """
    subject: Subject = RunFolder(path, tuple(trust or ()))
    if path.suffix in (".yaml", ".yml") and not path.is_dir():
        subject = OwnModel(path)
    for text in overrides or ():
        if parse_override(text).path[:2] != ("data", "ood"):
            raise ConfigError(
                "--set: expected a key of data.ood, since the rest is what the run was made with, "
                f"but got {text!r}"
            )
    return OtherOod(subject, tuple(overrides)) if overrides else subject


def common_data(runs: Sequence[Subject], splits: DataSplits | None = None) -> DataSplits:
    """The data of all runs, which must be one and the same, and what they were trained beside.

    `splits` are the first run's data, where they are read already.

    Raises:
        RunError: where a calibration, test or OOD set differs from the first run's, or from what it
            was when the run was trained.
    """
    first = runs[0]
    splits = first.load_data() if splits is None else splits
    now = splits.fingerprints()
    for run in runs:
        then = run.manifest["data"]
        for part in now:
            if part in ("train", "aux"):
                continue
            if then.get("test") == WITHHELD:
                raise RunError(
                    f"run: {run.path} is one of `greg-cert tune`, which is not for tests; train "
                    "with the setting that was chosen"
                )
            if then.get(part) != now[part]:
                why = (
                    "has changed since training"
                    if run is first
                    else f"differs from that of {first.path}"
                )
                raise RunError(f"run: the {part} split of {run.path} {why}")
    return splits


def unique_names(runs: Sequence[Subject]) -> list[str]:
    """A name for each run: titles where they differ, else folder names, else paths.

    Raises:
        RunError: for a run that occurs twice.
    """
    choices = (
        [r.config.title for r in runs],
        [r.path.resolve().name for r in runs],
        [str(r.path) for r in runs],
    )
    if len({r.path.resolve() for r in runs}) == len(runs):
        for names in choices:
            if len(set(names)) == len(names):
                return names
    raise RunError(f"runs: expected different runs, but got {', '.join(choices[-1])}")


@dataclass(frozen=True)
class OtherOod:
    """A subject with other OOD test sets than those it was trained beside.

    Calibration and test split stay what they were, and are checked to be.
    """

    base: Subject
    overrides: tuple[str, ...]  # of `data.ood`

    @property
    def path(self) -> Path:
        """Of the subject."""
        return self.base.path

    @cached_property
    def config(self) -> ExperimentConfig | OwnModelConfig:
        """The subject's, with the other sets.

        Raises:
            ConfigError: an override does not fit.
        """
        return revised(self.base.config, self.overrides)

    @cached_property
    def _splits(self) -> DataSplits:
        return load_data(self.config.data)

    def load_data(self) -> DataSplits:
        """Its data, read once."""
        return self._splits

    def load_model(self) -> nn.Module:
        """Of the subject."""
        return self.base.load_model()

    @property
    def weights_digest(self) -> str:
        """Of the subject."""
        return self.base.weights_digest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The subject's, with the fingerprints of the other sets."""
        then = {k: v for k, v in self.base.manifest.items() if k != DIGEST}
        data = {k: v for k, v in then["data"].items() if not k.startswith("ood/")}
        now = self._splits.fingerprints()
        data |= {k: v for k, v in now.items() if k.startswith("ood/")}
        return {**then, "data": data}
