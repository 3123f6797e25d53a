"""Configurations: typed, frozen records, read from YAML, where unknown keys are refused.

Names are resolved on first use: the options of commands need the settings of verification alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "experiment": ["ExperimentConfig", "InitConfig", "ModelConfig", "TrainConfig"],
        "own_model": ["OwnModelConfig", "OwnNetwork"],
        "reading": [
            *("dump_config", "load_any", "load_config", "load_own_model", "parse_config"),
            "revised",
        ],
        "verification": ["VerifyConfig"],
    },
)
