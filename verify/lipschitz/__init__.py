"""Proven Lipschitz constants: of layers, of a network everywhere, and over a ball."""

from greg_cert.verify.lipschitz.bound import (
    FORMS,
    LipschitzBound,
    lipschitz_bound,
    logit_bounds,
    separators,
)
from greg_cert.verify.lipschitz.operator_norms import norm_from_below, operator_norm, row_norms

__all__ = [
    "FORMS",
    "LipschitzBound",
    "lipschitz_bound",
    "logit_bounds",
    "norm_from_below",
    "operator_norm",
    "row_norms",
    "separators",
]
