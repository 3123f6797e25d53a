"""Goals of several rows as goals of one row each: what they say, and how far they are proven."""

from __future__ import annotations

import math

import pytest
import torch
from problems import build, energy_of, points
from torch import Tensor

from greg_cert.verify import certify
from greg_cert.verify.certificates import ContradictionWarning
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.methods.sdp_crown import SdpCrown, ball_radius
from greg_cert.verify.radius.coupled import rows as coupled_rows
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.radius.coupled.rows import CoupledRows
from greg_cert.verify.radius.goals import Goal, class_goal, decision_goal
from greg_cert.verify.radius.linear import LinearRadius
from greg_cert.verify.radius.problem import Batch, Problem
from greg_cert.verify.scorer import Margin

CLASSES = 4
MOST = 3.0


DECISIONS = {
    "energy": ("energy", Margin(-2.0, "ood")),
    "max_logit": ("max_logit", Margin(-1.2, "ood")),
    "absent_class": ("absent_class", Margin(-1.5, "ood")),
    "max_softmax": ("max_softmax", Margin(-0.1, "id")),
    "max_softmax, rejected": ("max_softmax", Margin(-0.6, "ood")),
}
KINDS = (*DECISIONS, "class")


def goal_of(kind: str, logits: Tensor) -> Goal:
    """A goal of several rows, about a level that random logits lie on both sides of."""
    if kind == "class":
        return class_goal("energy", logits, logits.argmax(1))
    return decision_goal(*DECISIONS[kind], logits)


def holds(goal: Goal, logits: Tensor) -> Tensor:
    """Whether (B,) it does at these logits."""
    value = goal.value(logits)
    level = goal.level.unsqueeze(1)
    return (value >= level).all(1) if goal.above else (value < level).all(1)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_together_are_enough_and_no_more_is_asked_than_needed(kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(400, CLASSES, generator=generator, dtype=torch.float64)
    goal = goal_of(kind, logits)
    if goal.above:
        levels = goal.level.unsqueeze(1).expand(goal.shift.shape[:2])
    elif goal.soft:  # any share of the level
        share = torch.rand(400, CLASSES, generator=generator, dtype=torch.float64)
        share = torch.where(goal.members.squeeze(1), share, 0.0)
        levels = goal.level.unsqueeze(1) + (share / share.sum(1, keepdim=True)).log()
        levels = torch.where(goal.members.squeeze(1), levels, math.inf)
    else:
        levels = torch.where(goal.members.squeeze(1), goal.level.unsqueeze(1), math.inf)
    where = torch.randn(400, CLASSES, generator=generator, dtype=torch.float64)
    each = torch.ones(400, dtype=torch.bool)
    for k in range(levels.shape[1]):
        single = coupled_rows._single(goal, levels, torch.full((400,), k))
        assert single.one_row
        each &= holds(single, where) | (single.level == -math.inf)
    whole = holds(goal, where)
    assert each.any()
    assert (each <= whole).all()
    if not goal.soft or goal.above:
        assert torch.equal(each, whole)


@pytest.mark.parametrize("known", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["energy", "absent_class", "max_softmax"])
def test_levels_of_a_log_sum_exp_do_not_exceed_it(kind: str, known: float) -> None:
    model, shape = build("mlp")
    model = model.double().eval()
    graph = trace_model(model, shape)
    x = points(shape, 6, seed=2)
    goal = goal_of(kind, model(x).detach())
    one = CoupledRadius(Problem(None, graph, max_radius=MOST), CoupledEffort(2, 2))
    rows = CoupledRows(one)
    levels = rows._levels(x, goal, torch.full((6,), known, dtype=torch.float64))
    members = goal.members.squeeze(1)
    total = torch.where(members, levels, -math.inf).logsumexp(1)
    assert (total < goal.level).all()
    assert (total > goal.level - 1e-6 * (1 + levels[members].abs().max())).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_further_than_one_multiplier_a_layer(kind: str) -> None:
    model, shape = build("conv")
    model = model.double().eval()
    graph = trace_model(model, shape)
    x = points(shape, 12, seed=2)
    logits = model(x).detach()
    spread = logits.logsumexp(1).median()
    goal = goal_of(kind, logits)
    if kind in ("energy", "max_logit", "absent_class"):  # so that some lie on the right side
        goal = Goal(False, goal.soft, goal.shift, goal.members, goal.level * 0 + spread)
    guess = torch.full((12,), math.nan, dtype=torch.float64)
    problem, batch = Problem(None, graph, max_radius=MOST), Batch(x, logits, guess)
    balls: LinearRadius = ball_radius(problem, SdpCrown().ladder)
    known = balls(batch, goal)
    rows = CoupledRows(CoupledRadius(problem, CoupledEffort(5, 8)))
    found = rows(batch.knowing(known), goal)
    assert (found >= known).all()
    right = (known > 0) & (known < MOST)
    if kind != "energy":  # there all logits count, which a chord of them all knows better
        assert (found[right] > 1.05 * known[right]).any()
    assert (found[~holds(goal, logits)] == 0).all()


def test_a_level_too_high_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log-sum-exp with each member at the whole level lies above it."""
    model, shape = build("conv")
    model = model.double().eval()
    x = points(shape, 6, seed=2)
    gamma = float(energy_of(model, x).median())

    def whole(self: CoupledRows, x: Tensor, goal: Goal, known: Tensor) -> Tensor:
        return goal.level.unsqueeze(1).expand(len(x), goal.shift.shape[2]).clone()

    monkeypatch.setattr(CoupledRows, "_levels", whole)
    with pytest.warns(ContradictionWarning, match="contradicted by an attack"):
        certify(
            model, x, gamma, side="ood", method="sdp-crown", max_radius=MOST, lipschitz=False,
            coupled=CoupledEffort(5, 10),
        )  # fmt: skip
