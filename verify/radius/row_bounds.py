"""Rows of the logits that decide a goal over a region: the best one, and better weights for it."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.bounds.engine import Relaxation, finite_bounds
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.radius.chord import chord_rows
from greg_cert.verify.radius.duality import (
    allowance,
    improve_weights,
    improve_weights_and_slopes,
    lower_rows,
)
from greg_cert.verify.radius.goals import Goal


def better_weights(
    relaxation: NativeRelaxation, goal: Goal, p: Tensor, steps: int | None
) -> tuple[NativeRelaxation, Tensor]:
    """Better weights, and the relaxation with better slopes where its method chooses them.

    None of either for `steps` None.
    """
    if steps is None or not goal.above:
        return relaxation, p
    if relaxation.optimise:
        return improve_weights_and_slopes(relaxation, goal, p, max(steps, 1))
    return relaxation, improve_weights(relaxation, goal, p, steps) if steps else p


def best_row(relaxation: Relaxation, goal: Goal, p: Tensor) -> tuple[Tensor, Tensor]:
    """The row (B, K) and constant (B,) that leave the largest margin, with rounding allowed for.

    row·f + constant is below zero for every violation in the region.
    """
    rows, constant = lower_rows(goal, p) if goal.above else chord_rows(relaxation, goal)
    value, slope, constant = allowed_lines(relaxation, goal, rows, constant)
    reach = ((value + constant) / slope).nan_to_num(nan=-torch.inf)
    best = reach.argmax(1, keepdim=True)
    row = rows.gather(1, best.unsqueeze(2).expand(-1, -1, rows.shape[2])).squeeze(1)
    return row, constant.gather(1, best).squeeze(1)


def allowed_lines(
    relaxation: Relaxation, goal: Goal, rows: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and slope (B, R) of rows (B, R, K), and their constants (B, R) less the rounding."""
    value, slope = relaxation.linear(rows)
    size = value.abs() + (constant - goal.level.unsqueeze(1)).abs()
    return value, slope, constant - allowance(size, goal)


def where_finite(reach: Tensor, relaxation: Relaxation) -> Tensor:
    """`reach` where all bounds are finite; nothing follows where one is not."""
    return torch.where(finite_bounds(relaxation), reach, 0.0).nan_to_num(nan=0.0, posinf=torch.inf)
