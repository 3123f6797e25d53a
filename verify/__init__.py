"""Sound bounds, certificates and attacks for the OOD scores of an image classifier."""

from greg_cert.verify.attack.gradient import gradient_norm
from greg_cert.verify.attack.pgd import attack_radius
from greg_cert.verify.certificates import Certificates
from greg_cert.verify.certify import certify
from greg_cert.verify.lipschitz import (
    global_lipschitz_bound,
    global_lipschitz_radius,
    lipschitz_bound,
)
from greg_cert.verify.score_bounds import score_bound

__all__ = [
    "Certificates",
    "attack_radius",
    "certify",
    "global_lipschitz_bound",
    "global_lipschitz_radius",
    "gradient_norm",
    "lipschitz_bound",
    "score_bound",
]
