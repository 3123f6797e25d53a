"""Classifiers whose normalisation lives inside, so that every radius is in raw pixels.

Names are resolved on first use, so that judging a model's name (`greg_cert.models.names`) imports
neither torch nor torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from greg_cert.models.base import Classifier as Classifier
    from greg_cert.models.maxmin import MaxMin as MaxMin
    from greg_cert.models.names import MODEL_NAMES as MODEL_NAMES
    from greg_cert.models.names import check_model_name as check_model_name
    from greg_cert.models.names import is_model_name as is_model_name
    from greg_cert.models.normalize import Normalize as Normalize
    from greg_cert.models.registry import build_model as build_model

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Classifier"],
        "maxmin": ["MaxMin"],
        "names": ["MODEL_NAMES", "check_model_name", "is_model_name"],
        "normalize": ["Normalize"],
        "registry": ["build_model"],
    },
)
