"""Along the decision boundary, from a point that crosses it to the nearest such point."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.norms import dual_norm, per_sample, steepest_direction, vector_norm
from greg_cert.verify.scorer import ScoreFunction, score_and_gradient

_BISECTIONS = 12
_SHORTER = 0.999  # of the best size: what a new direction has to beat


def walk_boundary(
    score: ScoreFunction, x: Tensor, delta: Tensor, best: Tensor, plan: AttackPlan
) -> tuple[Tensor, Tensor]:
    """Shorter perturbations (B, ...) that still cross, and their sizes (B,).

    Each step takes the boundary for the hyperplane of the gradient, whose nearest point gives the
    next direction; a direction that crosses at less than the best size is pulled back along itself.

    Source: the projection is that of Croce and Hein, "Minimally Distorted Adversarial Examples with
    a Fast Adaptive Boundary Attack", ICML 2020.
    """
    share = torch.full_like(best, 0.5)  # of the way to the hyperplane's nearest point
    for _ in range(plan.polish):
        values, gradient = score_and_gradient(score, x + delta)
        uphill = plan.margin.sign * gradient
        # uphill·δ′ = uphill·δ + (margin at δ), the smallest δ′: along the steepest direction.
        level = (uphill * delta).flatten(1).sum(1) + plan.margin.of(values)
        length = (level / dual_norm(uphill, plan.norm)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        nearest = per_sample(length, delta) * steepest_direction(uphill, plan.norm)
        turned = delta + per_sample(share, delta) * (nearest - delta)
        size = vector_norm(turned, plan.norm).clamp_min(torch.finfo(x.dtype).tiny)
        tried = plan.clipped(x, turned * per_sample(_SHORTER * best / size, turned))
        with torch.no_grad():
            hit = plan.margin.wrong(score(x + tried)) & (vector_norm(tried, plan.norm) < best)
        point, reached = pull_back(score, x, tried, hit, plan)
        delta = torch.where(per_sample(hit, delta), point, delta)
        best = torch.where(hit, reached, best)
        share = torch.where(hit, (1.5 * share).clamp(max=1.0), share / 2)
    return delta, best


def pull_back(
    score: ScoreFunction, x: Tensor, point: Tensor, hit: Tensor, plan: AttackPlan
) -> tuple[Tensor, Tensor]:
    """Bisect from each crossing point back towards its centre; the result still crosses."""
    low, high = torch.zeros_like(hit, dtype=x.dtype), torch.ones_like(hit, dtype=x.dtype)
    if hit.any():
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            with torch.no_grad():
                wrong = plan.margin.wrong(score(x + per_sample(middle, x) * point))
            high = torch.where(wrong, middle, high)
            low = torch.where(wrong, low, middle)
    point = per_sample(high, x) * point
    return point, vector_norm(point, plan.norm)
