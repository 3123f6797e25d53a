"""Classifiers whose normalisation lives inside, so that every radius is in raw pixels.

Names are resolved on first use, so that judging a model's name (`greg_cert.models.names`) imports
neither torch nor torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Classifier"],
        "maxmin": ["MaxMin"],
        "names": ["MODEL_NAMES", "check_model_name", "is_model_name"],
        "normalize": ["Normalize"],
        "registry": ["build_model"],
    },
)
