"""Scores written again by hand, true radii of affine networks, and attacks on any decision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from problems import build, climb, in_ball, points
from random_networks import random_network
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

Decision = Callable[[Tensor], Tensor]
"""Inputs (B, ...) to how far each is on the wrong side, (B,): wrong where > 0."""

SCORE_NAMES = ("energy", "max_logit", "max_softmax", "absent_class")
QUICK: dict[str, object] = {
    "rounds": 3,
    "cut_rounds": 2,
    "cuts": 2,
    "tolerance": 0.05,
    "attack_steps": 6,
    "attack_restarts": 1,
    "attack_polish": 3,
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the zoo, or a random one by its seed, in float64; and five inputs."""
    if name.isdigit():
        model, shape = random_network(int(name), classes=2 + int(name) % 3)
    else:
        model, shape = build(name)
    return model.double(), points(shape, 5)


def score_by_hand(name: str, f: Tensor) -> Tensor:
    """S (B,) of logits (B, K), written without logsumexp or softmax."""
    top = f.amax(1, keepdim=True)
    share = (f - top).exp()
    match name:
        case "energy":
            return -(top.squeeze(1) + share.sum(1).log())
        case "max_logit":
            return -top.squeeze(1)
        case "max_softmax":
            return -1 / share.sum(1)
        case _:
            rest = f[:, :-1]
            return f[:, -1] - rest.amax(1) - (rest - rest.amax(1, keepdim=True)).exp().sum(1).log()


def past(model: nn.Module, name: str, threshold: float, side: str) -> Decision:
    """How far S is past the threshold."""
    sign = 1.0 if side == "id" else -1.0
    return lambda x: sign * (score_by_hand(name, model(x)) - threshold)


def middle(model: nn.Module, name: str, x: Tensor) -> float:
    """A threshold between the scores of x, close to none of them."""
    scores = score_by_hand(name, model(x)).detach().sort().values
    gaps = scores.diff()[len(x) // 3 : -1]
    i = int(gaps.argmax()) + len(x) // 3
    return float((scores[i] + scores[i + 1]) / 2)


def crossings(wrong: Decision, x: Tensor, radius: Tensor, norm: float, draws: int = 8) -> Tensor:
    """Whether any point tried inside each ball is wrong, (B,)."""
    inside = radius * (1 - 1e-12)
    points = [in_ball(x, inside, norm, seed) for seed in range(draws)]
    points.append(climb(wrong, x, inside, norm, steps=10))
    with torch.no_grad():
        found = torch.stack([wrong(p) > 1e-12 for p in points])
    return found.any(0) & (radius > 0)


def dual(w: Tensor, norm: float) -> Tensor:
    """Dual norm of rows (..., D)."""
    return w.norm(dim=-1) if norm == 2.0 else w.abs().sum(-1)


def nearest_below(w: Tensor, b: Tensor, x: Tensor, level: float, norm: float) -> float:
    """Distance from x to {x' : w x' + b ≤ level, each row}, by a solver of its own."""
    a, rhs = w.numpy(), (level - b - w @ x).numpy()
    size = a.shape[1]
    if norm == math.inf:  # smallest t with |d| ≤ t and a·d ≤ rhs
        eye, one = np.eye(size), np.ones((size, 1))
        rows = np.block([[a, np.zeros((len(a), 1))], [eye, -one], [-eye, -one]])
        found = linprog(
            np.r_[np.zeros(size), 1.0],
            A_ub=rows,
            b_ub=np.r_[rhs, np.zeros(2 * size)],
            bounds=[(None, None)] * size + [(0, None)],
        )
        return float(found.fun) if found.success else math.inf
    found = minimize(
        lambda d: d @ d,
        np.linalg.pinv(a) @ rhs,
        jac=lambda d: 2 * d,
        constraints={"type": "ineq", "fun": lambda d: rhs - a @ d, "jac": lambda d: -a},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    return float(np.sqrt(found.fun))
