"""What one engine proves about a goal on one ball a sample."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.engine import Engine, RegionEngine, Relaxation
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import Region
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.radius.branch import Effort, prove_by_parts, split_nodes
from greg_cert.verify.radius.chord import chord_rows, separate_reach
from greg_cert.verify.radius.duality import (
    improve_weights,
    improve_weights_and_slopes,
    lower_reach,
)
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.row_bounds import allowed_lines, where_finite


class BallBounds:
    """Bounds of one graph by one engine, in the floating type of the graph's weights."""

    def __init__(self, graph: Graph, engine: Engine, norm: float, method: str) -> None:
        self._graph, self._engine, self._norm, self._method = graph, engine, norm, method

    def reach(
        self, x: Tensor, radii: Tensor, goal: Goal, p: Tensor, effort: Effort
    ) -> tuple[Tensor, Tensor]:
        """How far the linear bounds of balls of `radii` (B,) about x prove the goal, in float64.

        Weights p (B, G, K) are for a goal that stays above its level.

        Returns:
            (B,) reach, which may exceed `radii`, and the weights that gave it.
        """
        dtype = self._graph.dtype
        x, radii, goal = x.to(dtype), radii.to(dtype), goal.to(dtype)
        p = torch.where(goal.members, p.to(dtype).clamp_min(0.0), 0.0)
        p = p / p.sum(2, keepdim=True)
        if not split_nodes(self._graph):
            effort = replace(effort, splits=0)
        with torch.no_grad():
            if (
                (effort.cuts or effort.splits)
                and isinstance(self._engine, RegionEngine)
                and can_cut(goal)
            ):
                reach, p = self._by_parts(
                    self._engine, Region(x, radii, self._norm), goal, p, effort
                )
            else:
                relaxation = self._engine.relax(x, radii, self._norm, self._method)
                reach, p = _plain(relaxation, radii, goal, p, effort.mirror_steps)
                reach = where_finite(reach, relaxation)
        always = goal.level == (-torch.inf if goal.above else torch.inf)
        return torch.where(always, torch.inf, reach.double()), p.double()

    def _by_parts(
        self, engine: RegionEngine, region: Region, goal: Goal, p: Tensor, effort: Effort
    ) -> tuple[Tensor, Tensor]:
        """Reach where the ball is cut down, and split, to where violations may still lie."""
        reach, p = prove_by_parts(engine, self._method, region, goal, p, effort)
        if not goal.above:
            # Bounds of each z_j by itself may do better than what they have in common.
            relaxation = engine.relax_region(region, self._method)
            alone = separate_reach(relaxation, goal, 2 * region.radii)
            reach = torch.maximum(reach, where_finite(alone, relaxation))
        return reach, p


def can_cut(goal: Goal) -> bool:
    """Whether one linear row decides the goal."""
    return goal.shift.shape[1] == 1 and (goal.above or goal.soft)


def _plain(
    relaxation: Relaxation, radii: Tensor, goal: Goal, p: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Reach (B,) from linear bounds alone, and the weights that gave it."""
    if not goal.above:
        reach = separate_reach(relaxation, goal, 2 * radii)
        if goal.soft:
            value, slope, constant = allowed_lines(relaxation, goal, *chord_rows(relaxation, goal))
            gap = value + constant
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
