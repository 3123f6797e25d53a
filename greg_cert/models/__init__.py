"""Classifiers whose normalisation lives inside, so that every radius is in raw pixels.

Names are resolved on first use, so that judging a model's name (`greg_cert.models.names`) imports
neither torch nor torchvision.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greg_cert.models.base import Classifier
    from greg_cert.models.maxmin import MaxMin
    from greg_cert.models.names import MODEL_NAMES, check_model_name, is_model_name
    from greg_cert.models.normalize import Normalize
    from greg_cert.models.registry import build_model

__all__ = [
    "MODEL_NAMES",
    "Classifier",
    "MaxMin",
    "Normalize",
    "build_model",
    "check_model_name",
    "is_model_name",
]

_HOME = {
    "MODEL_NAMES": "names",
    "Classifier": "base",
    "MaxMin": "maxmin",
    "Normalize": "normalize",
    "build_model": "registry",
    "check_model_name": "names",
    "is_model_name": "names",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
