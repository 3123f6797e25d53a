"""What a stage prescribes for one of its steps."""

from __future__ import annotations

import math

from greg_cert.stages import StageConfig
from greg_cert.train.objective.step import Terms
from greg_cert.train.progress import Progress


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Of step `step` of a stage of `steps`, the first being 0."""
    if stage.schedule == "constant":
        return stage.lr
    if stage.schedule == "steps":
        epoch = step * stage.epochs // steps
        return stage.lr * 0.1 ** sum(epoch >= done for done in stage.milestones)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def terms_of_step(
    stage: StageConfig, progress: Progress, step: int, per_epoch: int, processes: int
) -> Terms:
    """The terms of the loss in step `step` of a stage, the first being 0.

    `progress` holds its margins; an epoch has `per_epoch` steps, each shared by `processes`.
    """
    ramp = stage.lambda_lipschitz_ramp * per_epoch
    penalised, weight = step % stage.penalty_every == 0, stage.penalty_every
    risen = min(1.0, (step + 1) / max(1.0, ramp))
    return Terms(
        outlier_loss=stage.outlier_loss,
        gradient=stage.gradient and penalised,
        lambda_score=stage.lambda_score,
        lambda_grad=stage.lambda_grad * weight,
        lambda_lipschitz=stage.lambda_lipschitz * risen * weight if penalised else 0.0,
        score=stage.score,
        m_in=-math.inf if progress.m_in is None else progress.m_in,
        m_out=math.inf if progress.m_out is None else progress.m_out,
        scaling=stage.scaling,
        gradient_space=stage.gradient_space,
        estimator=stage.estimator,
        processes=processes,
    )
