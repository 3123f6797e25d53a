"""α-CROWN: slopes stay in range, bounds hold, and are tighter where they can be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from problems import Function, affine, build, climb, in_ball, points
from random_networks import random_network
from soundness import attack_relaxation
from torch import Tensor, nn

from greg_cert.verify.bounds.alpha import SlopeAscent, best_slopes, first_slopes
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.duality import (
    _usual,
    first_weights,
    improve_weights,
    improve_weights_and_slopes,
)
from greg_cert.verify.radius.duality import lower_rows as rows_of
from greg_cert.verify.radius.goals import Goal, decision_goal
from greg_cert.verify.scorer import Margin

NORMS = (2.0, math.inf)
NETWORKS = ("mlp", "leaky", "max_min", "bent", "2", "5")


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    return random_network(int(name)) if name.isdigit() else build(name)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_and_are_never_looser(name: str, norm: float) -> None:
    model, shape = network(name)
    graph, x = trace_model(model, shape), points(shape, 3)
    radii = torch.tensor([0.01, 0.1, 0.4], dtype=x.dtype) * (1.0 if norm == 2.0 else 0.3)
    assert attack_relaxation(graph, "native", x, radii, norm, "alpha-crown") > 0
    engine = NativeEngine(graph)
    usual, better = engine.relax(x, radii, norm), engine.relax(x, radii, norm, "alpha-crown")
    for i in graph.activations:
        for k, sign in ((0, 1.0), (1, -1.0)):
            before, after = usual.preactivations[i][k], better.preactivations[i][k]
            slack = 1e-9 * (1 + before.abs())
            assert bool((sign * after >= sign * before - slack).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_goals_are_bounded_no_worse_and_soundly(name: str, norm: float) -> None:
    """With slopes and weights chosen, the row is a lower bound still, wherever in the ball."""
    model, shape = network(name)
    graph, x = trace_model(model, shape), points(shape, 3)
    radii = torch.tensor([0.01, 0.1, 0.4], dtype=x.dtype) * (1.0 if norm == 2.0 else 0.3)
    relaxation = NativeEngine(graph).relax(x, radii, norm, "alpha-crown")
    model = model.double()
    logits = model(x).detach()
    goal = decision_goal("energy", Margin(0.0, "id"), logits)
    start = first_weights(goal, logits)
    plain = improve_weights(relaxation, goal, start, 4)
    chosen, p = improve_weights_and_slopes(relaxation, goal, start, 4)

    def margin(where: object, weights: Tensor) -> Tensor:
        rows, constant = rows_of(goal, weights)
        return (where.lower(rows) + constant).detach()  # type: ignore[attr-defined]

    assert bool((margin(chosen, p) >= margin(relaxation, plain) - 1e-12).all())
    worst = attack_value(model, goal, x, radii, norm)
    assert bool((margin(chosen, p).squeeze(1) <= worst + 1e-9 * (1 + worst.abs())).all())
    assert chosen.slopes is not None
    for i, slopes in chosen.slopes.items():
        assert bool((slopes >= graph.nodes[i].op.negative_slope).all())  # type: ignore[union-attr]
        assert float(slopes.max()) <= 1.0


def attack_value(model: nn.Module, goal: Goal, x: Tensor, radii: Tensor, norm: float) -> Tensor:
    """The smallest margin found in each ball, (B,)."""

    def value(y: Tensor) -> Tensor:
        return goal.value(model(y)).squeeze(1) - goal.level

    tried = [climb(lambda y: -value(y), x, radii, norm)]
    tried += [in_ball(x, radii, norm, seed) for seed in range(10)]
    return torch.stack([value(y).detach() for y in tried]).amin(0)


def test_a_slope_that_crown_chooses_badly() -> None:
    """ReLU(z) on [−1, 1.1] is at least 0; CROWN, which takes z itself, says −1."""
    model = nn.Sequential(
        affine(torch.ones(1, 1), torch.tensor([0.05])),
        nn.ReLU(),
        affine(torch.ones(1, 1), torch.zeros(1)),
    ).eval()  # fmt: skip
    graph = trace_model(model, (1,))
    x, radii = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1.05], dtype=torch.float64)
    relaxation = NativeEngine(graph).relax(x, radii, 2.0, "alpha-crown")
    goal = decision_goal(
        "max_logit", Margin(0.5, "id"), torch.full((1, 1), 0.05, dtype=torch.float64)
    )
    ones = torch.ones(1, 1, 1, dtype=torch.float64)
    assert float(relaxation.lower(ones)) == pytest.approx(-1.0, abs=1e-9)
    chosen, p = improve_weights_and_slopes(relaxation, goal, ones, 10)
    assert -1e-2 < float(chosen.lower(goal.rows(p))) <= 0.0


def test_preactivations_that_only_better_slopes_tighten() -> None:
    """z = ReLU(a) + ReLU(b) − 0.3·(a + b) + 0.1 with a, b of unknown sign, each leaning up."""
    first = affine(torch.eye(2), torch.tensor([0.1, 0.1]))
    second = affine(
        torch.tensor([[1.0, 1.0, -0.3, -0.3]]), torch.tensor([0.1], dtype=torch.float64)
    )

    head = affine(torch.ones(1, 1), torch.zeros(1))

    def both(x: Tensor, first: nn.Module, second: nn.Module, head: nn.Module) -> Tensor:
        y = first(x)
        return head(torch.relu(second(torch.cat([torch.relu(y), y], 1))))  # type: ignore[no-any-return]

    graph = trace_model(Function(both, first, second, head).eval(), (2,))
    x, radii = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    engine = NativeEngine(graph)
    last = graph.activations[-1]
    low = [
        float(engine.relax(x, radii, math.inf, method).preactivations[last][0])
        for method in ("crown", "alpha-crown")
    ]
    # Slopes of 0.3 leave 0.1 over; with 1 each of a and b takes 0.7·0.9 away. (The box says −0.56.)
    assert low[0] < -0.4
    assert 0.0 < low[1] <= 0.1


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_changes_in_an_affine_network(norm: float) -> None:
    generator = torch.Generator().manual_seed(3)
    model = affine(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator))
    graph, x = trace_model(model, (4,)), points((4,), 3)
    radii = torch.full((3,), 0.2, dtype=x.dtype)
    rows = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)
    usual, other = (NativeEngine(graph).relax(x, radii, norm, m) for m in ("crown", "alpha-crown"))
    assert torch.equal(usual.lower(rows), other.lower(rows))
    logits = model(x).detach()
    goal = decision_goal("energy", Margin(0.0, "id"), logits)
    chosen, p = improve_weights_and_slopes(other, goal, first_weights(goal, logits), 3)
    assert chosen.slopes == {}
    assert bool((p > 0).all())


@pytest.mark.parametrize("name", ["leaky", "bent"])
def test_slopes_stay_between_the_lines(name: str) -> None:
    graph = trace_model(*build(name))
    wide = {i: (-torch.ones(2, *s).double(), torch.ones(2, *s).double()) for i, s in shapes(graph)}
    ascent = SlopeAscent(graph, first_slopes(graph, wide, 3))
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        for i, slopes in ascent.slopes.items():
            least = graph.nodes[i].op.negative_slope  # type: ignore[union-attr]
            assert bool((slopes >= least).all())
            assert float(slopes.max()) <= 1.0
        scale = 10.0 ** (step - 10)
        ascent.step(
            {
                i: scale * torch.randn(s.shape, generator=generator, dtype=torch.float64)
                if step % 5 else None
                for i, s in ascent.slopes.items()
            }
        )  # fmt: skip


def shapes(graph):  # type: ignore[no-untyped-def]
    return [(i, graph.nodes[i].shape) for i in graph.activations]


def test_each_row_keeps_the_best_it_ever_had() -> None:
    graph = trace_model(*build("leaky"))
    wide = {i: (-torch.ones(1, *s).double(), torch.ones(1, *s).double()) for i, s in shapes(graph)}
    seen: list[Tensor] = []

    def lowest(slopes) -> Tensor:  # type: ignore[no-untyped-def]
        value = sum(((s - 0.6) ** 2).flatten(2).sum(2) for s in slopes.values())
        value = -value * torch.tensor([[1.0, 1e3, 1e-6]], dtype=torch.float64)
        seen.append(value.detach())
        return value

    best, _ = best_slopes(graph, wide, 3, lowest, 8)
    assert len(seen) == 9
    assert torch.equal(best, torch.stack(seen).amax(0))
    assert bool((best > seen[0]).all())


def test_slopes_outside_their_range_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    step = SlopeAscent.step

    def too_far(self: SlopeAscent, gradients: Mapping[int, Tensor | None]) -> None:
        step(self, gradients)
        self.slopes = {i: 1.5 * s - 0.25 for i, s in self.slopes.items()}

    monkeypatch.setattr(SlopeAscent, "step", too_far)
    with pytest.raises(AssertionError):
        test_bounds_hold_and_are_never_looser("mlp", 2.0)


def test_the_usual_slopes_are_exact_in_float64() -> None:
    """A slope of 0.01 rounded to float32 is less than 0.01: a line above the function."""
    model = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.01), nn.Linear(3, 2)).double().eval()
    graph = trace_model(model, (2,))
    x, radii = points((2,), 2), torch.tensor([3.0, 5.0], dtype=torch.float64)
    relaxation = NativeEngine(graph).relax(x, radii, 2.0)
    for i in graph.activations:
        low, high = relaxation.preactivations[i]
        slopes = _usual(relaxation, i, 1).squeeze(1)
        assert bool(((slopes == 1.0) | (slopes == 0.01)).all())
        assert bool((slopes[high <= -low] == 0.01).all())
