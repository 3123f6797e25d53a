"""Post-hoc OOD detectors on any trained classifier: build, fit on ID training data, score.

Names are resolved on first use, so that judging a detector's name (`greg_cert.detectors.names`)
imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue": ["DETECTORS", "DetectorInfo"],
        "detector": ["Detector", "build_detector"],
        "names": ["parse_detector"],
        "penultimate": ["Outputs", "Penultimate"],
    },
)
