"""A multiplier a neuron for goals that no single row decides: as goals of one row each.

A maximum stays below a level where each of its members does, and several log-sum-exps stay above
one where each does: the radius is the smallest of theirs. A log-sum-exp stays below a level ℓ where
each z_j stays below a level b_j of its own, for any b with logsumexp b ≤ ℓ: they are set to where
cheaper bounds of the z_j stand together when they reach ℓ. The row whose margin is smallest comes
first, and the others need only reach as far.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from greg_cert.verify.bounds.coupled.engine import CoupledRelaxation
from greg_cert.verify.radius.chord import separate_reach, upper_lines
from greg_cert.verify.radius.coupled.one_ball import GUESS, CoupledRadius
from greg_cert.verify.radius.duality import allowance
from greg_cert.verify.radius.goals import Goal
from greg_cert.verify.radius.problem import Batch

_SHORT = 0.98  # of where the cheaper bounds reach the level
_STEPS = 8  # of their slopes


class CoupledRows:
    """Proven ℓ2 radii of one graph for any goal, by coupled bounds of one row after another.

    Args:
        one: proves goals of one row.
    """

    def __init__(self, one: CoupledRadius) -> None:
        self._one = one

    def __call__(self, batch: Batch, goal: Goal) -> Tensor:
        """Radii (B,) for any goal, at least those known."""
        known = torch.zeros_like(batch.first_order) if batch.known is None else batch.known
        batch = batch.knowing(known)
        if goal.one_row:
            return torch.maximum(known, self._one(batch, goal))
        x, logits = batch.x, batch.logits
        if goal.above:
            levels, value = goal.level.unsqueeze(1).expand(goal.shift.shape[:2]), goal.value(logits)
        else:
            levels, value = self._levels(x, goal, known), goal.shifted(logits).squeeze(1)
        margins = value - levels if goal.above else levels - value
        order = margins.argsort(1)
        reached = torch.full_like(known, self._one.max_radius)
        for k in range(order.shape[1]):
            single = _single(goal, levels, order[:, k])
            members = ((reached > known) & (single.level > -torch.inf)).nonzero().squeeze(1)
            if len(members) == 0:
                break
            # The first is searched for; those after it have to reach as far.
            guess = reached / GUESS if k else torch.where(known > 0, torch.nan, batch.first_order)
            begun = replace(batch, first_order=guess).of(members)
            found = self._one(begun, single.of(members), reached[members])
            reached[members] = torch.minimum(reached[members], found)
        return torch.maximum(reached, known)

    def _levels(self, x: Tensor, goal: Goal, known: Tensor) -> Tensor:
        """A level (B, K) for each z_j; all of them together keep a `below` goal."""
        members = goal.members.squeeze(1)
        level = goal.level.unsqueeze(1)
        if not goal.soft:
            return torch.where(members, level, torch.inf)
        moved = self._one.boxes(x, known)
        relaxation = CoupledRelaxation(self._one.graph, moved, x, known, _STEPS)
        upper, slope = upper_lines(relaxation, goal)
        distance = _SHORT * separate_reach(relaxation, goal, 2 * known)
        b = upper + distance.unsqueeze(1) * slope
        b = b + (level - b.logsumexp(1, keepdim=True))
        b = b - allowance(b.nan_to_num(neginf=0.0).abs().amax(1, keepdim=True), goal)
        return torch.where(members, b, torch.inf).nan_to_num(nan=-torch.inf, posinf=torch.inf)


def _single(goal: Goal, levels: Tensor, index: Tensor) -> Goal:
    """One of the goals (B,) that a goal of several rows consists of."""
    level = levels.gather(1, index.unsqueeze(1)).squeeze(1)
    index = index.reshape(-1, 1, 1)
    if goal.above:
        at = index.expand(-1, 1, goal.shift.shape[2])
        return Goal(True, goal.soft, goal.shift.gather(1, at), goal.members.gather(1, at), level)
    # That −z_j stays above −b_j, told by z_j as the one member.
    unit = torch.zeros_like(goal.shift).scatter(2, index, 1.0)
    return Goal(True, False, 2 * unit - goal.shift, unit > 0, -level)
