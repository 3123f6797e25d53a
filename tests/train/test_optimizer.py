"""Optimisers against their formulas, written out for one weight vector in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from greg_cert.stages import StageConfig
from greg_cert.train.optimizer import make_optimizer

Vector = NDArray[np.float64]
CURVES = np.array([1.0, 0.1, -2.0])  # the gradient of the loss at w is CURVES·w + 0.3
RATES = (0.1, 0.1, 0.02)


def sgd(w: Vector, decay: float, momentum: float) -> Vector:
    velocity = np.zeros_like(w)
    for rate in RATES:
        g = CURVES * w + 0.3 + decay * w
        velocity = momentum * velocity + g
        w = w - rate * (g + momentum * velocity if momentum else g)
    return w


def adam(w: Vector, decay: float, betas: Any, decoupled: bool) -> Vector:
    first = second = np.zeros_like(w)
    for t, rate in enumerate(RATES, 1):
        g = CURVES * w + 0.3 + (0.0 if decoupled else decay * w)
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g**2
        unbiased = first / (1 - betas[0] ** t), second / (1 - betas[1] ** t)
        shrunk = w * (1 - rate * decay) if decoupled else w
        w = shrunk - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return w


@pytest.mark.parametrize(
    ("fields", "formula"),
    [
        ({}, lambda w: sgd(w, 5e-4, 0.9)),
        ({"momentum": 0.0, "weight_decay": 0.1}, lambda w: sgd(w, 0.1, 0.0)),
        ({"optimizer": "adam"}, lambda w: adam(w, 5e-4, (0.9, 0.999), False)),
        (
            {"optimizer": "adam", "weight_decay": 0.2, "betas": (0.5, 0.8)},
            lambda w: adam(w, 0.2, (0.5, 0.8), False),
        ),
        (
            {"optimizer": "adamw", "weight_decay": 0.2},
            lambda w: adam(w, 0.2, (0.9, 0.999), True),
        ),
    ],
)
def test_steps_follow_the_formula(
    fields: dict[str, Any], formula: Callable[[Vector], Vector]
) -> None:
    start = np.array([1.0, -2.0, 0.5])
    weights = torch.tensor(start, requires_grad=True)
    optimizer = make_optimizer(StageConfig(method="ce", epochs=1, lr=9.0, **fields), [weights])
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = rate  # as the schedule does
        weights.grad = torch.tensor(CURVES) * weights.detach() + 0.3
        optimizer.step()
    expected = formula(start)
    np.testing.assert_allclose(weights.detach().numpy(), expected, rtol=1e-12)
