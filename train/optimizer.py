"""The optimiser that a stage asks for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from greg_cert.stages import StageConfig


def make_optimizer(stage: StageConfig, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """A fresh optimiser of the weights, without a state; the stage's schedule sets its rate later.

    Source: SGD with Nesterov's correction as Sutskever et al., "On the importance of initialization
    and momentum in deep learning", ICML 2013, has it; Adam of Kingma and Ba, ICLR 2015; AdamW of
    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    if stage.optimizer == "sgd":
        return torch.optim.SGD(
            weights,
            lr=stage.lr,
            momentum=stage.momentum,
            nesterov=stage.momentum > 0,
            weight_decay=stage.weight_decay,
        )
    kind = torch.optim.Adam if stage.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay)
