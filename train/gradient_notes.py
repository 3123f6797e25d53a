"""What a user is told of a gradient penalty that cannot work, or hardly counts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from greg_cert.errors import ConfigError, PenaltyWarning
from greg_cert.runs.training_log import TrainingLog
from greg_cert.stages import StageConfig

_LEAST = 0.01  # share of the loss


@contextlib.contextmanager
def explained(model: str, precision: str) -> Iterator[None]:
    """Say what to do where an operation of the model cannot be differentiated twice."""
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise ConfigError(
            f"train.stages: model {model} cannot be differentiated twice "
            f"({str(error).splitlines()[0]}); set estimator: finite-difference"
            + (" and precision: 32" if precision == "bf16" else "")
        ) from error


def penalty_share(log: TrainingLog, first: int, stage: StageConfig) -> float | None:
    """λ_∇·L_∇ as a share of the loss, both averaged over a stage's rows, to three digits.

    None where no row since step `first`, the last one before the stage, has the penalty.
    """
    rows = log.steps > first
    norms, losses = log.column("grad_loss")[rows], log.column("loss")[rows]
    penalised = np.isfinite(norms)
    if not penalised.any():
        return None
    part = stage.lambda_grad * float(norms[penalised].mean())
    # A penalty that comes every k steps weighs k times as much in them.
    others = losses - np.where(penalised, stage.lambda_grad * stage.penalty_every * norms, 0.0)
    return float(f"{part / (part + float(others.mean())):.3g}")


def note_share(index: int, stage: StageConfig, log: TrainingLog, first: int) -> dict[str, Any]:
    """`penalty_share` of stage number `index` for the manifest; warns where it hardly counts."""
    share = penalty_share(log, first, stage)
    if share is None:
        return {}
    if share < _LEAST:
        why = (
            f"lambda_grad = {stage.lambda_grad:g} with scaling = {stage.scaling} hardly smooths"
            if share
            else "no sample is past its margin"
        )
        warnings.warn(
            f"train.stages[{index}]: the gradient penalty is {100 * share:.2g} % of the loss so "
            f"far: {why}",
            PenaltyWarning,
            stacklevel=2,
        )
    return {"penalty_share": share}
