"""Sound bounds, certificates and attacks for the OOD scores of an image classifier."""

from greg_cert.verify.attack import attack_radius
from greg_cert.verify.certificates import Certificates
from greg_cert.verify.certify import certify
from greg_cert.verify.gradient import gradient_norm
from greg_cert.verify.lipschitz import lipschitz_bound
from greg_cert.verify.score_bounds import score_bound

__all__ = [
    "Certificates",
    "attack_radius",
    "certify",
    "gradient_norm",
    "lipschitz_bound",
    "score_bound",
]
