"""Optimisers and rates against their formulas, written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from greg_cert.stages import StageConfig
from greg_cert.train.optimizer import make_optimizer
from greg_cert.train.schedule import learning_rate

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


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, [0.4] * 12),
        ({}, [0.4 * np.cos(np.pi * i / 24) ** 2 for i in range(12)]),
        (
            {"schedule": "steps", "milestones": (1, 3)},
            [0.4] * 3 + [0.04] * 6 + [0.004] * 3,
        ),
    ],
)
def test_rates_of_four_epochs_of_three_steps(fields: dict[str, Any], expected: list[float]) -> None:
    stage = StageConfig(method="ce", epochs=4, lr=0.4, **fields)
    assert [learning_rate(stage, i, 12) for i in range(12)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "steps"},
        {"milestones": (1,)},
        {"schedule": "steps", "milestones": (3, 1)},
        {"schedule": "steps", "milestones": (1, 1)},
        {"schedule": "steps", "milestones": (4,)},
    ],
)
def test_milestones_that_are_no_epochs_of_the_stage_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected rising milestones below 4 epochs"):
        StageConfig(method="ce", epochs=4, lr=0.4, **fields)
