"""Proven Lipschitz constants: of layers, of a network everywhere, and over a ball."""

from greg_cert.verify.lipschitz.bound import (
    FORMS,
    LipschitzBound,
    check_form,
    lipschitz_bound,
    logit_bounds,
    separators,
)
from greg_cert.verify.lipschitz.global_bound import (
    global_constant,
    global_lipschitz_bound,
    node_constants,
)
from greg_cert.verify.lipschitz.global_radius import global_lipschitz_radius
from greg_cert.verify.operators.operator_norms import norm_from_below, operator_norm, row_norms

__all__ = [
    "FORMS",
    "LipschitzBound",
    "check_form",
    "global_constant",
    "global_lipschitz_bound",
    "global_lipschitz_radius",
    "lipschitz_bound",
    "logit_bounds",
    "node_constants",
    "norm_from_below",
    "operator_norm",
    "row_norms",
    "separators",
]
