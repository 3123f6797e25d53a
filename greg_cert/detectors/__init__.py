"""Post-hoc OOD detectors on any trained classifier: build, fit on ID training data, score.

Names are resolved on first use, so that judging a detector's name (`greg_cert.detectors.names`)
imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from greg_cert.detectors.catalogue import DETECTORS as DETECTORS
    from greg_cert.detectors.catalogue import DetectorInfo as DetectorInfo
    from greg_cert.detectors.detector import Detector as Detector
    from greg_cert.detectors.detector import build_detector as build_detector
    from greg_cert.detectors.names import parse_detector as parse_detector
    from greg_cert.detectors.penultimate import Outputs as Outputs
    from greg_cert.detectors.penultimate import Penultimate as Penultimate

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue": ["DETECTORS", "DetectorInfo"],
        "detector": ["Detector", "build_detector"],
        "names": ["parse_detector"],
        "penultimate": ["Outputs", "Penultimate"],
    },
)
