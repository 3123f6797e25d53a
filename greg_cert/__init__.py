"""greg-cert: train gradient-regularised OOD detectors and certify how far their judgement holds."""

__version__ = "0.1.0"
