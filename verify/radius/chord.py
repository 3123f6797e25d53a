"""Upper bounds of log-sum-exps and maxima from linear bounds: what rejection needs.

Two ways, of which the better is taken:

* each z_j has a linear upper bound u_j + r‖a_j‖* at distance r, and log-sum-exp grows with each;
* with z_j = c·z + d_j for a fixed probability vector c and l ≤ d_j ≤ u on the region, exp lies
  below its chord, so Σ exp d_j ≤ Σ α_j d_j + β =: T, and log T ≤ log t + (T − t)/t for any t > 0.
  That is
  one linear function of the logits, in which what they have in common cancels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from greg_cert.verify.bounds.engine import Relaxation
from greg_cert.verify.radius.duality import allowance
from greg_cert.verify.radius.goals import Goal

_STEPS = 60  # of bisection: down to float64 resolution
_WIDEST = 25.0  # of d on the region; beyond that the chord says little, and rounds off much
_TANGENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def separate_reach(relaxation: Relaxation, goal: Goal, cap: Tensor) -> Tensor:
    """Distance (B,) ≤ `cap` (B,) within which a `below` goal follows from bounds of each z_j.

    Zero where the bounds fail at once. Found by bisection.
    """
    upper, slope = upper_lines(relaxation, goal)
    slack = allowance(upper.nan_to_num(neginf=0.0), goal).amax(1)

    def holds(r: Tensor) -> Tensor:
        z = upper + r.unsqueeze(1) * slope
        value = z.logsumexp(1) if goal.soft else z.amax(1)
        return value + slack < goal.level

    low, high = torch.zeros_like(cap), cap.clone()
    whole = holds(cap)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        good = holds(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(whole, cap, low)


@torch.no_grad()
def upper_value(relaxation: Relaxation, goal: Goal) -> Tensor:
    """Upper bound (B,) of the log-sum-exp, or maximum, over the region; G = 1."""
    eye = _unit_weights(goal)
    members = goal.members.squeeze(1)
    highest = torch.where(members, -relaxation.lower(goal.rows(-eye)), -math.inf)
    bound = highest.logsumexp(1) if goal.soft else highest.amax(1)
    if goal.soft:
        rows, constant = chord_rows(relaxation, goal)
        joint = goal.level.unsqueeze(1) - constant - relaxation.lower(rows)
        bound = torch.minimum(bound, joint.nan_to_num(nan=math.inf).amin(1))
    size = bound.abs().unsqueeze(1)
    return bound + allowance(size, goal).squeeze(1)


@torch.no_grad()
def chord_rows(relaxation: Relaxation, goal: Goal) -> tuple[Tensor, Tensor]:
    """Rows (B, R, K) and constants (B, R) with rows·f + constant ≤ level − logsumexp z, each.

    The inequality holds on the region of the relaxation; a row of NaN where it says nothing.
    """
    members = goal.members.squeeze(1)
    eye = _unit_weights(goal)
    centre, _ = relaxation.linear(goal.rows(eye))
    c = torch.where(members, centre, -math.inf).softmax(1)  # any c would do
    difference = goal.rows(eye - c.unsqueeze(1))
    bounds = relaxation.lower(torch.cat([difference, -difference], 1))
    low, negative_high = bounds.split(eye.shape[1], dim=1)
    high = torch.maximum(-negative_high, low)
    high = torch.where(high - low <= _WIDEST, high, math.nan)
    # exp lies below its chord on [low, high]; expm1 keeps it exact where that is short.
    width = (high - low).clamp_min(1e-12)
    steep = low.exp() * torch.expm1(width) / width
    at_zero = low.exp() - steep * low
    steep, at_zero = (torch.where(members, t, 0.0) for t in (steep, at_zero))
    total = at_zero.sum(1, keepdim=True)
    # T as weights of z. The tangent is exact at t, and T is largest where it matters most.
    growth = (steep - steep.sum(1, keepdim=True) * c).unsqueeze(1)
    most = total - relaxation.lower(goal.rows(-growth))
    least = torch.where(members, low, -math.inf).exp().sum(1, keepdim=True)
    shares = torch.tensor(_TANGENTS, dtype=c.dtype, device=c.device)
    tangent = (least + shares * (most - least).clamp_min(0.0)).clamp_min(1e-30)  # (B, R)
    weights = -(c.unsqueeze(1) + growth / tangent.unsqueeze(2))
    constant = 1 - total / tangent - tangent.log()
    return goal.rows(weights), goal.level.unsqueeze(1) + constant


def upper_lines(relaxation: Relaxation, goal: Goal) -> tuple[Tensor, Tensor]:
    """Upper bounds (B, K) of each z_j at the centre, −inf where there is none, and their slopes."""
    value, slope = relaxation.linear(goal.rows(-_unit_weights(goal)))
    members = goal.members.squeeze(1)
    return torch.where(members, -value, -math.inf), torch.where(members, slope, 0.0)


def _unit_weights(goal: Goal) -> Tensor:
    """The weights (B, K, K) that read each z_j."""
    count, _, classes = goal.members.shape
    eye = torch.eye(classes, dtype=goal.shift.dtype, device=goal.shift.device)
    return eye.expand(count, -1, -1)
