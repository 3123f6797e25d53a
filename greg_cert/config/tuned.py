"""One setting at several values: the experiments that differ in it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greg_cert.config.experiment import ExperimentConfig, ModelConfig, TrainConfig
from greg_cert.config.fields import nearest
from greg_cert.config.overrides import apply_overrides, parse_override
from greg_cert.config.reading import parse_config, read_experiment
from greg_cert.errors import ConfigError, UsageError
from greg_cert.stages import StageConfig

_OPTION = "--for"


@dataclass(frozen=True)
class Tuned:
    """A setting, and the experiment at each of its values.

    Attributes:
        keys: where it is set, as `--set` names it.
        why: why there, in words; empty where the user named the whole path.
        configs: by the value as it was typed, in order.
    """

    keys: tuple[str, ...]
    why: str
    configs: Mapping[str, ExperimentConfig]


def load_tuned(path: Path, setting: str, values: Sequence[str], overrides: Sequence[str]) -> Tuned:
    """The experiment in a YAML file at each value of a setting, with overrides in all of them.

    The setting is one of a stage by its bare name, which is set in every stage that sets it
    explicitly, in the last stage where none does; or a path such as `model.activation`.

    Raises:
        ConfigError: as `load_config`, and for a setting that training does not depend on.
        UsageError: for values that are the same.
    """
    raw = apply_overrides(read_experiment(path), overrides, ExperimentConfig)
    base = path.resolve().parent
    parse_config(raw, base)  # what is wrong at any value
    keys, why = _keys(setting, raw)
    configs: dict[str, ExperimentConfig] = {}
    for value in values:
        try:
            changed = apply_overrides(raw, [f"{key}={value}" for key in keys], ExperimentConfig)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--set", _OPTION, 1)) from error
        config = parse_config(changed, base)
        for other, found in configs.items():
            if found == config:
                raise UsageError(
                    f"--values: expected values of {setting} that differ, but {other} and {value} "
                    "give the same experiment"
                )
        configs[value] = config
    return Tuned(keys, why, configs)


def _keys(setting: str, raw: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Where the setting is set, and why there."""
    name = setting.strip()
    if name in StageConfig.model_fields:
        stages = raw["train"]["stages"]
        explicit = [i for i, stage in enumerate(stages) if name in stage]
        chosen = explicit or [len(stages) - 1]
        why = "the stages that set it" if explicit else "set in no stage, so in the last one"
        if len(explicit) == 1:
            why = "the one stage that sets it"
        return tuple(f"train.stages[{i}].{name}" for i in chosen), why
    try:
        first = parse_override(f"{name}=0").path[0]
    except ConfigError as error:
        raise ConfigError(f"{_OPTION}: expected the name of a setting, but got {name!r}") from error
    if first in ("train", "model") and name != first:
        return (name,), ""
    if first in ExperimentConfig.model_fields:
        hint = "; --seeds gives several seeds" if first == "seed" else ""
        raise ConfigError(
            f"{_OPTION}: expected a setting of train or model, since all runs share data and "
            f"verification, but got {name!r}{hint}"
        )
    paths = [f"train.{k}" for k in TrainConfig.model_fields if k != "stages"]
    paths += [f"model.{k}" for k in ModelConfig.model_fields]
    full = {path.rpartition(".")[2]: path for path in paths} | {k: k for k in paths}
    near = nearest(name, [*StageConfig.model_fields, *full])
    hint = f"; did you mean {full.get(near, near)!r}?" if near else ""
    raise ConfigError(f"{_OPTION}: unknown setting {name!r}{hint}")
