"""What one engine proves about a goal on one ball a sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.verify.chord import chord_rows, separate_reach
from greg_cert.verify.duality import (
    allowance,
    improve_weights,
    improve_weights_and_slopes,
    lower_reach,
    lower_rows,
)
from greg_cert.verify.engine import Engine, Relaxation, finite_bounds
from greg_cert.verify.goals import Goal
from greg_cert.verify.graph import Graph
from greg_cert.verify.native_engine import NativeEngine, OutputConstraint
from greg_cert.verify.native_relaxation import NativeRelaxation
from greg_cert.verify.region import Region, tighter_cut

_LEAST_GAIN = 0.01  # of the ball's radius: below that, cutting once more is not worth it


@dataclass(frozen=True)
class Effort:
    """How hard to try on one ball.

    Attributes:
        mirror_steps: steps of mirror ascent on the weights p.
        cuts: how often the ball is cut down to where violations may still lie.
    """

    mirror_steps: int = 0
    cuts: int = 0


class BallBounds:
    """Bounds of one graph by one engine, in the floating type of the graph's weights."""

    def __init__(self, graph: Graph, engine: Engine, norm: float, method: str) -> None:
        self._graph, self._engine, self._norm, self._method = graph, engine, norm, method

    def reach(
        self, x: Tensor, radii: Tensor, goal: Goal, p: Tensor, effort: Effort
    ) -> tuple[Tensor, Tensor]:
        """How far the linear bounds of balls of `radii` (B,) prove the goal.

        Args:
            x: (B, ...) centres, float64.
            radii: (B,) float64.
            goal: what to prove, float64.
            p: (B, G, K) the weights to use for a goal that stays above its level.
            effort: how hard to try.

        Returns:
            (B,) reach in float64, which may exceed `radii`, and the weights that gave it.
        """
        dtype = self._graph.dtype
        x, radii, goal = x.to(dtype), radii.to(dtype), goal.to(dtype)
        p = _normalised(p.to(dtype), goal)
        with torch.no_grad():
            if effort.cuts and isinstance(self._engine, NativeEngine) and _can_cut(goal):
                reach, p = self._cut(self._engine, Region(x, radii, self._norm), goal, p, effort)
            else:
                relaxation = self._engine.relax(x, radii, self._norm, self._method)
                reach, p = _plain(relaxation, radii, goal, p, effort.mirror_steps)
                reach = _void(reach, relaxation)
        always = goal.level == (-torch.inf if goal.above else torch.inf)
        return torch.where(always, torch.inf, reach.double()), p.double()

    def _cut(
        self, engine: NativeEngine, region: Region, goal: Goal, p: Tensor, effort: Effort
    ) -> tuple[Tensor, Tensor]:
        """Reach where the ball is cut down, again and again, to where violations may still lie.

        Every violation in the ball lies beyond each cut, so none is nearer than the furthest.
        """
        count = len(region.radii)
        reach, kept = torch.zeros_like(region.radii), p.clone()
        members = torch.arange(count, device=reach.device)
        relaxation: NativeRelaxation | None = None
        constraint: OutputConstraint | None = None
        for turn in range(effort.cuts + 1):
            relaxation = engine.relax_region(
                region, self._method, outer=relaxation, constraint=constraint
            )
            chosen, p = _improve(relaxation, goal, p, effort.mirror_steps)
            row, constant = _best_row(chosen, goal, p)
            half, steepness = chosen.half_space(row, constant)
            cut = tighter_cut(region.cut, half, self._norm)
            distance = cut.distance
            if turn == 0 and not goal.above:
                distance = distance.maximum(separate_reach(chosen, goal, 2 * region.radii))
            distance = _void(distance, relaxation)
            before = reach[members]
            better = distance > before
            reach[members] = torch.where(better, distance, before)
            kept[members] = torch.where(better.reshape(-1, 1, 1), p, kept[members])
            gains = distance > before + _LEAST_GAIN * region.radii
            keep = ((distance < region.radii) & (gains | (turn == 0))).nonzero().squeeze(1)
            if turn == effort.cuts or len(keep) == 0:
                break
            members, goal, p = members[keep], goal.of(keep), p[keep]
            relaxation = relaxation.of(keep)
            region = Region(region.inputs[keep], region.radii[keep], self._norm, cut.of(keep))
            constraint = OutputConstraint(row[keep], constant[keep], steepness[keep])
        return reach, kept


def _can_cut(goal: Goal) -> bool:
    """Whether one linear row decides the goal."""
    return goal.shift.shape[1] == 1 and (goal.above or goal.soft)


def _improve(
    relaxation: NativeRelaxation, goal: Goal, p: Tensor, steps: int
) -> tuple[NativeRelaxation, Tensor]:
    """Better weights, and the relaxation with better slopes where its method chooses them."""
    if not goal.above:
        return relaxation, p
    if relaxation.optimise:
        return improve_weights_and_slopes(relaxation, goal, p, max(steps, 1))
    return relaxation, improve_weights(relaxation, goal, p, steps) if steps else p


def _best_row(relaxation: NativeRelaxation, goal: Goal, p: Tensor) -> tuple[Tensor, Tensor]:
    """The row (B, K) and constant (B,) that leave the largest margin, with rounding allowed for.

    row·f + constant is below zero for every violation in the region.
    """
    if goal.above:
        rows, constant = lower_rows(goal, p)
    else:
        rows, constant = chord_rows(relaxation, goal)
    value, slope = relaxation.linear(rows)
    size = value.abs() + (constant - goal.level.unsqueeze(1)).abs()
    constant = constant - allowance(size, goal)
    reach = ((value + constant) / slope).nan_to_num(nan=-torch.inf)
    best = reach.argmax(1, keepdim=True)
    row = rows.gather(1, best.unsqueeze(2).expand(-1, -1, rows.shape[2])).squeeze(1)
    return row, constant.gather(1, best).squeeze(1)


def _plain(
    relaxation: Relaxation, radii: Tensor, goal: Goal, p: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Reach (B,) from linear bounds alone, and the weights that gave it."""
    if not goal.above:
        reach = separate_reach(relaxation, goal, 2 * radii)
        if goal.soft:
            rows, constant = chord_rows(relaxation, goal)
            value, slope = relaxation.linear(rows)
            size = value.abs() + (constant - goal.level.unsqueeze(1)).abs()
            gap = value + constant - allowance(size, goal)
            chord = torch.where(gap > 0, gap / slope, 0.0).nan_to_num(nan=0.0).amax(1)
            reach = torch.maximum(reach, chord)
        return reach, p
    reach = lower_reach(relaxation, goal, p)
    if steps:
        if isinstance(relaxation, NativeRelaxation) and relaxation.optimise:
            chosen, better = improve_weights_and_slopes(relaxation, goal, p, steps)
            tried = lower_reach(chosen, goal, better)
        else:
            better = improve_weights(relaxation, goal, p, steps)
            tried = lower_reach(relaxation, goal, better)
        p = torch.where((tried > reach).reshape(-1, 1, 1), better, p)
        reach = torch.maximum(reach, tried)
    return reach, p


def _void(reach: Tensor, relaxation: Relaxation) -> Tensor:
    """`reach` where all bounds are finite; nothing follows where one is not."""
    return torch.where(finite_bounds(relaxation), reach, 0.0).nan_to_num(nan=0.0, posinf=torch.inf)


def _normalised(p: Tensor, goal: Goal) -> Tensor:
    p = torch.where(goal.members, p.clamp_min(0.0), 0.0)
    return p / p.sum(2, keepdim=True)
