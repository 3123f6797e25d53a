"""Training of GReg and GReg+ detectors."""

from greg_cert.outlier_losses import energy_margin_loss
from greg_cert.train.loop import check, fit
from greg_cert.train.objective.lipschitz import lipschitz_penalty
from greg_cert.train.objective.penalty import gradient_penalty
from greg_cert.train.outliers.sampling import two_ended_sample

__all__ = [
    "check",
    "energy_margin_loss",
    "fit",
    "gradient_penalty",
    "lipschitz_penalty",
    "two_ended_sample",
]
