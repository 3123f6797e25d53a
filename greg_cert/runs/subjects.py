"""What is evaluated and verified: a run that was trained here, or a model from elsewhere."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from greg_cert.config import OwnModelConfig, VerifyConfig, load_own_model, revised
from greg_cert.config.overrides import parse_override
from greg_cert.data import DataSplits, load_data
from greg_cert.data.schema import DataConfig
from greg_cert.data.withheld import WITHHELD
from greg_cert.digests import DIGEST, json_digest, tensors_digest
from greg_cert.errors import ConfigError, RunError
from greg_cert.models import build_model
from greg_cert.models.normalize import Normalize
from greg_cert.models.onnx.file import OnnxFile, read_onnx
from greg_cert.runs.records import RunFolder, environment, model_sizes
from greg_cert.runs.weights import LoadReport, load_foreign

SUFFIXES = (".yaml", ".yml")  # of the description of a model from elsewhere


class Described(Protocol):
    """What `Subject.config` tells."""

    @property
    def data(self) -> DataConfig:
        """Sources and splits."""
        ...

    @property
    def verify(self) -> VerifyConfig:
        """Defaults of a verification."""
        ...

    @property
    def network(self) -> str:
        """What tables call the network."""
        ...

    @property
    def method(self) -> str:
        """What tables call its training."""
        ...

    @property
    def score(self) -> str:
        """OOD score it is evaluated by."""
        ...

    @property
    def title(self) -> str:
        """What tables call it."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Plain values."""
        ...


class Subject(Protocol):
    """A model with its data: a `RunFolder` or an `OwnModel`."""

    @property
    def path(self) -> Path:
        """Where it was found."""
        ...

    @property
    def config(self) -> Described:
        """Its description."""
        ...

    @property
    def manifest(self) -> dict[str, Any]:
        """Sizes of the model (`model`), fingerprints of the data (`data`), and what made it."""
        ...

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        ...

    def load_model(self) -> nn.Module:
        """The model from raw pixels to logits, on the CPU in evaluation mode."""
        ...

    def load_data(self) -> DataSplits:
        """Its data."""
        ...


def open_subject(path: Path, overrides: Sequence[str] = ()) -> Subject:
    """The run in a folder, or the model that a YAML file describes.

    Args:
        path: of either.
        overrides: other OOD test sets, as `data.ood[0].n=50` (`greg_cert.config.overrides`).

    Raises:
        ConfigError: an override of anything else: the rest is what the model was trained with.
    """
    subject: Subject = RunFolder(path)
    if path.suffix in SUFFIXES and not path.is_dir():
        subject = OwnModel(path)
    for text in overrides:
        if parse_override(text).path[:2] != ("data", "ood"):
            raise ConfigError(
                "--set: expected a key of data.ood, since the rest is what the run was made with, "
                f"but got {text!r}"
            )
    return OtherOod(subject, tuple(overrides)) if overrides else subject


def common_data(runs: Sequence[Subject], splits: DataSplits | None = None) -> DataSplits:
    """The data of all runs, which must be one and the same, and what they were trained beside.

    Args:
        runs: at least one.
        splits: the first run's data, where they are read already.

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
class OwnModel:
    """A model that was trained elsewhere, described by a YAML file (`OwnModelConfig`).

    Its factory is imported and run; the current folder is one of those that are looked through.
    """

    path: Path

    @cached_property
    def config(self) -> OwnModelConfig:
        """The description.

        Raises:
            ConfigError: as `load_own_model`.
        """
        return load_own_model(self.path)

    @cached_property
    def _splits(self) -> DataSplits:
        return load_data(self.config.data)

    def load_data(self) -> DataSplits:
        """Its data, read once."""
        return self._splits

    @cached_property
    def _loaded(self) -> tuple[nn.Module, LoadReport | OnnxFile | None]:
        described = self.config.model
        sizes = model_sizes(self._splits, absent_class=self.config.score == "absent_class")
        report: LoadReport | OnnxFile | None = None
        if described.onnx is not None:
            report = self._onnx(described.onnx)
            model: nn.Module = report.module
        elif described.name is not None:
            model = build_model(described.name, **sizes)
        else:
            assert described.factory is not None
            model = made_by(described.factory, described.arguments)
        if (given := described.weights) is not None:
            report = load_foreign(
                model,
                given.weights,
                allow_missing=given.allow_missing,
                allow_unexpected=given.allow_unexpected,
                rename=given.rename,
                entry=given.entry,
            )
        if described.normalize:
            model = nn.Sequential(Normalize(sizes["mean"], sizes["std"]), model)
        model = model.to("cpu", torch.float32).eval()
        _check_logits(model, self._splits, self.config)
        return model, report

    def _onnx(self, path: Path) -> OnnxFile:
        found = read_onnx(path)
        of_data = (self._splits.channels, self._splits.image_size, self._splits.image_size)
        if found.image_shape != of_data:
            raise RunError(
                f"model.onnx: expected {path} to take images of the data, {of_data}, "
                f"but it takes {found.image_shape}"
            )
        return found

    def load_model(self) -> nn.Module:
        """The model from raw pixels to logits, on the CPU in evaluation mode.

        Raises:
            RunError: the factory cannot be imported or fails, the weights do not fit, the ONNX file
                cannot be read, or the outputs are not one logit a class.
            UnsupportedModelError: an operation in the ONNX file that is not known.
        """
        return self._loaded[0]

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the model's tensors, by name, and of the ONNX file where they come from one.

        Which layers such a file has, and of which strides, is not told by its tensors.
        """
        digest, report = state_digest(self.load_model()), self._loaded[1]
        if isinstance(report, OnnxFile):
            digest = json_digest({"tensors": digest, "file": report.sha256})
        return digest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """As of a run: sizes, fingerprints, and where the weights came from."""
        report = self._loaded[1]
        sizes = model_sizes(self._splits, absent_class=self.config.score == "absent_class")
        return {
            "method": self.config.method,
            "score": self.config.score,
            "model": sizes,
            "data": self._splits.fingerprints(),
            "init": None if report is None else report.to_dict(),
            "weights_sha256": self.weights_digest,
            **environment("cpu"),
        }


@dataclass(frozen=True)
class OtherOod:
    """A subject with other OOD test sets than those it was trained beside.

    Calibration and test split stay what they were, and are checked to be.

    Attributes:
        base: the subject.
        overrides: of `data.ood`.
    """

    base: Subject
    overrides: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Of the subject."""
        return self.base.path

    @cached_property
    def config(self) -> Described:
        """The subject's, with the other sets.

        Raises:
            ConfigError: an override does not fit.
        """
        found: Any = self.base.config
        return cast("Described", revised(found, self.overrides))

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


def state_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and values of a model's tensors."""
    return tensors_digest(model.state_dict())


def made_by(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """What `package.module:name`, called with the arguments, makes.

    Raises:
        RunError: it cannot be imported, fails, or makes something else than a module.
    """
    module_name, _, name = factory.partition(":")
    field = "model.factory"
    try:
        with _at_home():
            place: Any = importlib.import_module(module_name)
        for part in name.split("."):
            place = getattr(place, part)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise RunError(
            f"{field}: expected package.module:name that can be imported from here, "
            f"but got {factory!r} ({type(error).__name__}: {error})"
        ) from error
    make = cast("Callable[..., Any]", place)
    try:
        with _at_home():
            model = make(**arguments)
    except (Exception, SystemExit) as error:
        given = json.dumps(arguments, default=str)
        raise RunError(
            f"{field}: {factory} failed with arguments {given} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(model, nn.Module):
        raise RunError(
            f"{field}: expected {factory} to give a torch.nn.Module, "
            f"but got a {type(model).__name__}"
        )
    return model


@contextmanager
def _at_home() -> Iterator[None]:
    """The current folder importable, as `python -m` has it, and what is printed on standard error.

    Standard output is for results; a factory may tell of its progress there.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _check_logits(model: nn.Module, splits: DataSplits, config: OwnModelConfig) -> None:
    classes = splits.num_classes + (config.score == "absent_class")
    pixels = splits.calibration.pixels([0])
    try:
        with torch.no_grad():
            logits = model(pixels)
    except Exception as error:
        raise RunError(
            f"model: {config.network} cannot take images of shape {tuple(pixels.shape)} "
            f"({type(error).__name__}: {error})"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (1, classes):
        raise RunError(
            f"model: expected logits (1, {classes}) of one image, one a class"
            f"{' and one of the absent class' if config.score == 'absent_class' else ''}, "
            f"but {config.network} gives {found}"
        )
