"""Configurations from YAML and back, with errors of one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from greg_cert.config.experiment import ExperimentConfig
from greg_cert.config.overrides import apply_overrides
from greg_cert.config.own_model import OwnModelConfig
from greg_cert.config.problems import one_line
from greg_cert.config.yaml_text import load_yaml
from greg_cert.errors import ConfigError
from greg_cert.files import read_text, user_path
from greg_cert.section import Section

_Config = TypeVar("_Config", bound=Section)


def load_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment in a YAML file, with overrides such as `train.epochs=5` on top of it.

    Its relative paths start from the file's folder.

    Raises:
        ConfigError: for a missing or unreadable file, an unknown key, or a value out of range; one
            line that names the field, what was expected and what was found.
    """
    raw = apply_overrides(read_experiment(path), overrides, ExperimentConfig)
    return parse_config(raw, base=path.resolve().parent)


def read_experiment(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file of an experiment.

    Raises:
        ConfigError: as `read_mapping`, or for the description of a model from elsewhere.
    """
    raw = read_mapping(path)
    if _is_own_model(raw):
        raise ConfigError(
            f"config: expected an experiment, but {path} has no `train`: add it, or, where the "
            "model is trained already, give the file to evaluate, verify, predict or doctor"
        )
    return raw


def _is_own_model(raw: dict[str, Any]) -> bool:
    model = raw.get("model")
    keys = ("factory", "onnx", "weights")
    return "train" not in raw and isinstance(model, dict) and not model.keys().isdisjoint(keys)


def load_own_model(path: Path) -> OwnModelConfig:
    """The description of a model trained elsewhere; paths and errors as of `load_config`."""
    raw = read_mapping(path)
    if "train" in raw:
        raise ConfigError(
            f"config: expected a run folder or the description of a model, but {path} describes an "
            "experiment, which is yet to be trained"
        )
    return _parse(OwnModelConfig, raw, path.resolve().parent)


def load_any(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig | OwnModelConfig:
    """An experiment, or the description of a model from elsewhere, whichever a file holds.

    It is the latter where it has no `train`, but a `model` with `factory`, `onnx` or `weights`.
    """
    raw, base = read_mapping(path), path.resolve().parent
    kind: type[ExperimentConfig | OwnModelConfig] = ExperimentConfig
    if _is_own_model(raw):
        kind = OwnModelConfig
    return _parse(kind, apply_overrides(raw, overrides, kind), base)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping.

    Raises:
        ConfigError: for a file that cannot be read, or holds something else.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise ConfigError(f"config: expected a readable file, but got {path}: {why}") from error
    try:
        raw = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config: expected valid YAML in {path}, but got: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config: expected a mapping in {path}, but got {type(raw).__name__}")
    return raw


def parse_config(raw: dict[str, Any], base: Path | None = None) -> ExperimentConfig:
    """A validated experiment; with `base`, relative paths are made absolute from there.

    Raises:
        ConfigError: as `load_config`.
    """
    return _parse(ExperimentConfig, raw, base)


def revised(config: _Config, overrides: Sequence[str]) -> _Config:
    """A record with settings on top of it, validated again; errors as of `load_config`."""
    raw = config.model_dump(mode="json")
    return _parse(type(config), apply_overrides(raw, overrides, type(config)), None)


def _parse(kind: type[_Config], raw: dict[str, Any], base: Path | None) -> _Config:
    try:
        config = kind.model_validate(raw, context={} if base is None else {"base": base})
    except ValidationError as error:
        kinds = ExperimentConfig, OwnModelConfig
        raise ConfigError(one_line(error, kind, kinds)) from error
    return config if base is None else kind.model_validate(_anchor(config, base))


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML; `parse_config` of it gives the same record."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _anchor(value: Any, base: Path) -> Any:
    """A record as plain values, its relative paths joined to `base`."""
    if isinstance(value, BaseModel):
        return {name: _anchor(getattr(value, name), base) for name in type(value).model_fields}
    if isinstance(value, (list, tuple)):
        return [_anchor(v, base) for v in value]
    if isinstance(value, Path):
        return base / user_path(value)
    return value
