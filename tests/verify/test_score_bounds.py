"""Bounds of a score over a ball hold, are exact for affine scores, and enclose attacks."""

from __future__ import annotations

import math

import pytest
import torch
from problems import build, climb, exact_cases, in_ball, points
from torch import Tensor

from greg_cert.scores import SCORES
from greg_cert.verify import score_bound
from greg_cert.verify.attack.pgd import attacked_scores
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.scorer import Margin, score_function

NORMS = (2.0, math.inf)
SIDES = ("id", "ood")


def rise(side: str, values: Tensor) -> Tensor:
    """Scores with the sign that makes the wrong side larger."""
    return values if side == "id" else -values


@pytest.mark.parametrize(
    ("name", "score", "norm", "side"),
    [  # every network with every score and norm, and every three of score, norm and side
        (name, score, norm, SIDES[(i + j + k) % 2])
        for i, name in enumerate(["mlp", "conv", "residual", "leaky"])
        for j, score in enumerate(SCORES)
        for k, norm in enumerate(NORMS)
    ],
)
def test_no_point_of_the_ball_passes_the_bound(
    name: str, score: str, norm: float, side: str
) -> None:
    model, shape = build(name)
    x = points(shape, 3, seed=71)
    value = score_function(model, score)
    for radius in (0.02, 0.3):
        bound = score_bound(model, x, radius, side=side, norm=norm, score=score)
        assert bool(bound.isfinite().all())
        radii = torch.full((len(x),), radius, dtype=torch.float64)
        found = [value(in_ball(x, radii, norm, seed)) for seed in range(6)]
        found.append(value(climb(lambda y: rise(side, value(y)), x, radii, norm)))
        plan = AttackPlan(Margin(0.0, side), norm, steps=8, restarts=2)
        attacked = attacked_scores(value, x, radii, plan)
        assert bool((rise(side, attacked) >= rise(side, value(x))).all())
        for values in (*found, attacked):
            assert bool((rise(side, values) <= rise(side, bound) + 1e-12).all())
    # A ball hardly larger than its centre leaves hardly anything open.
    near = score_bound(model, x, 1e-9, side=side, norm=norm, score=score)
    assert torch.allclose(near, value(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", sorted(exact_cases()))
def test_affine_scores_are_bounded_exactly(case: str, norm: float, side: str) -> None:
    exact = exact_cases()[case]
    weight = exact.model[0].weight[0].detach()  # type: ignore[index]
    dual = float(weight.norm() if norm == 2.0 else weight.abs().sum())
    clean = score_function(exact.model)(exact.inputs)
    for engine in ("native", "auto-lirpa"):
        bound = score_bound(exact.model, exact.inputs, 0.4, side=side, norm=norm, engine=engine)
        truth = clean + (0.4 * dual if side == "id" else -0.4 * dual)
        assert torch.allclose(bound, truth, rtol=1e-7, atol=1e-7)
        assert bool((rise(side, bound) >= rise(side, truth)).all())


def test_a_larger_ball_is_no_better_and_memory_changes_nothing() -> None:
    model, shape = build("conv")
    x = points(shape, 5, seed=72)
    small, large = (score_bound(model, x, r) for r in (0.1, 0.4))
    assert bool((large <= small).all())
    assert torch.allclose(score_bound(model, x, 0.4, memory=1e-5), large, rtol=1e-9)
