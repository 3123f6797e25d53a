"""Configurations: typed, frozen records, read from YAML, where unknown keys are refused."""

from greg_cert.config.experiment import ExperimentConfig, InitConfig, ModelConfig, TrainConfig
from greg_cert.config.own_model import OwnModelConfig, OwnNetwork
from greg_cert.config.reading import (
    dump_config,
    load_any,
    load_config,
    load_own_model,
    parse_config,
    revised,
)
from greg_cert.config.verification import VerifyConfig

__all__ = [
    "ExperimentConfig",
    "InitConfig",
    "ModelConfig",
    "OwnModelConfig",
    "OwnNetwork",
    "TrainConfig",
    "VerifyConfig",
    "dump_config",
    "load_any",
    "load_config",
    "load_own_model",
    "parse_config",
    "revised",
]
