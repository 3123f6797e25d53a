"""Balls are cut down to where violations lie: no attacked violation is ever cut off."""

from __future__ import annotations

import math

import pytest
import torch
from problems import build, climb, in_ball, points
from score_oracles import QUICK, SCORE_NAMES, middle, past

from greg_cert.verify import certify
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import Cut, Region, tighter_cut
from greg_cert.verify.graph.ops import forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius import branch
from greg_cert.verify.radius.ball import BallBounds, Effort
from greg_cert.verify.radius.duality import first_weights
from greg_cert.verify.radius.goals import decision_goal
from greg_cert.verify.scorer import Margin

NORMS = (2.0, math.inf)
DTYPE = torch.float64

Seen = list[tuple[Region, NativeRelaxation]]


def collect(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every region that is relaxed from here on, with its relaxation."""
    seen: Seen = []
    relax = NativeEngine.relax_region

    def noted(self: NativeEngine, region: Region, *given, **named):  # type: ignore[no-untyped-def]
        relaxation = relax(self, region, *given, **named)
        seen.append((region, relaxation))
        return relaxation

    monkeypatch.setattr(NativeEngine, "relax_region", noted)
    return seen


def check_cuts(
    score: str, side: str, norm: float, method: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> int:
    """Attack balls larger than the true radius: each violation lies in all that is kept."""
    model, shape = build(name)
    model, x = model.double(), points(shape, 4)
    threshold = middle(model, score, x)
    wrong = past(model, score, threshold, side)
    with torch.no_grad():
        right = wrong(x) < 0
        x, logits = x[right], model(x[right])
    graph = trace_model(model, shape)
    radii = torch.full((len(x),), 0.5 if norm == 2.0 else 0.2, dtype=DTYPE)
    seen = collect(monkeypatch)
    goal = decision_goal(score, Margin(threshold, side), logits)
    bounds = BallBounds(graph, NativeEngine(graph), norm, method)
    found, cuts = 0, 0
    for scale in (1.0, 0.4, 0.15):
        del seen[:]
        ball_radii = scale * radii
        reach, _ = bounds.reach(x, ball_radii, goal, first_weights(goal, logits), Effort(4, 3))
        tried = [climb(wrong, x, ball_radii, norm, steps=s) for s in (3, 10, 25)]
        for seed in range(8):
            start = in_ball(x, ball_radii / 2, norm, seed)
            tried += [
                in_ball(x, ball_radii, norm, 50 + seed),
                climb(wrong, start, ball_radii / 2, norm),
            ]
        for y in tried:
            with torch.no_grad():
                bad = wrong(y) > 1e-12
                values = forward_all(graph, y)
            moved = (y - x).flatten(1)
            size = moved.norm(dim=1) if norm == 2.0 else moved.abs().amax(1)
            assert not bool((bad & (size < torch.minimum(reach, ball_radii) * (1 - 1e-9))).any())
            for region, relaxation in seen:
                for k, centre in enumerate(region.inputs):
                    b = int((x == centre).flatten(1).all(1).nonzero()[0])
                    if not bad[b]:
                        continue
                    found += 1
                    assert not bool(relaxation.empty[k]), "a violation in an empty region"
                    if region.cut is not None:
                        cuts += 1
                        along = float(moved[b] @ region.cut.normal[k])
                        assert along <= -float(region.cut.distance[k]) + 1e-12, "it is cut off"
                    for i, (low, high) in relaxation.preactivations.items():
                        z = values[graph.nodes[i].inputs[0]][b]
                        slack = 1e-12 * (1 + z.abs())
                        assert bool((z >= low[k] - slack).all() & (z <= high[k] + slack).all())
    monkeypatch.undo()
    assert found
    return cuts


CUT_CASES = [
    ("energy", "id", "crown"),
    ("energy", "ood", "crown"),
    ("max_logit", "id", "crown-ibp"),
    ("max_softmax", "id", "crown"),
    ("absent_class", "id", "alpha-crown"),
    ("absent_class", "ood", "crown"),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("score", "side", "method"), CUT_CASES)
def test_no_violation_is_cut_off(
    score: str, side: str, method: str, norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = [check_cuts(score, side, norm, method, monkeypatch, n) for n in ("mlp", "leaky")]
    assert sum(cuts) > 0


def test_a_cut_that_is_too_deep_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def deeper(*given: object) -> Cut:
        cut = tighter_cut(*given)  # type: ignore[arg-type]
        return Cut(cut.normal, 1.5 * cut.distance + 0.03)

    monkeypatch.setattr(branch, "tighter_cut", deeper)
    with pytest.raises(AssertionError):
        check_cuts("energy", "id", 2.0, "crown", monkeypatch, "mlp")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("score", "side"), [("energy", "id"), ("energy", "ood"), ("max_softmax", "id")]
)
def test_cuts_never_cost_radius(score: str, side: str, norm: float) -> None:
    model, shape = build("mlp")
    model, x = model.double(), points(shape, 5)
    threshold = middle(model, score, x)
    given = {**QUICK, "rounds": 10, "tolerance": 0.01, "attack": False, "lipschitz": False}
    without, beside = (
        certify(model, x, threshold, side=side, norm=norm, score=score, **{**given, "cuts": cuts})  # type: ignore[arg-type]
        for cuts in (0, 3)
    )
    assert bool((beside.radius_certified >= 0.95 * without.radius_certified).all())


def test_all_scores_have_a_cut_case() -> None:
    assert {case[0] for case in CUT_CASES} == set(SCORE_NAMES)
