"""Post-hoc OOD detectors on any trained classifier: build, fit on ID training data, score.

Names are resolved on first use, so that judging a detector's name (`greg_cert.detectors.names`)
imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greg_cert.detectors.catalogue import DETECTORS, DetectorInfo
    from greg_cert.detectors.detector import Detector, build_detector
    from greg_cert.detectors.names import parse_detector
    from greg_cert.detectors.penultimate import Outputs, Penultimate

__all__ = [
    "DETECTORS",
    "Detector",
    "DetectorInfo",
    "Outputs",
    "Penultimate",
    "build_detector",
    "parse_detector",
]

_HOME = {
    "DETECTORS": "catalogue",
    "Detector": "detector",
    "DetectorInfo": "catalogue",
    "Outputs": "penultimate",
    "Penultimate": "penultimate",
    "build_detector": "detector",
    "parse_detector": "names",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
