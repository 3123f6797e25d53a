"""Classifiers whose normalisation lives inside, so that every radius is in raw pixels."""

from greg_cert.models.base import Classifier
from greg_cert.models.normalize import Normalize
from greg_cert.models.registry import MODEL_NAMES, build_model

__all__ = ["MODEL_NAMES", "Classifier", "Normalize", "build_model"]
