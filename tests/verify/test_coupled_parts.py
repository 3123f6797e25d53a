"""Balls split by signs under coupled bounds: sound, never less, and more where it counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from problems import build, energy_of, points
from torch import Tensor, nn

from greg_cert.verify import attack_radius, certify
from greg_cert.verify.bounds.coupled.charges import ProvenPrices, largest_eigenvalue
from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.operators.dense import dense_matrix
from greg_cert.verify.radius.coupled import parts as coupled_parts
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius
from greg_cert.verify.radius.coupled.parts import CoupledParts, PartsEffort
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.radius.goals import decision_goal
from greg_cert.verify.radius.problem import Batch
from greg_cert.verify.radius.problem import Problem as Asked
from greg_cert.verify.scorer import Margin

NETWORKS = ("mlp", "conv", "leaky", "residual", "max_min", "max_pool_2", "bent")
EFFORT = PartsEffort(balls=3, steps=12, splits=3, part_steps=5, domains=8)
MOST = 4.0


class Problem:
    """A network, samples on the right side, and radii by coupled bounds of whole balls."""

    def __init__(self, name: str) -> None:
        model, shape = build(name)
        self.model: nn.Module = model.double().eval()
        self.x = points(shape, 3, seed=6)
        scores = energy_of(self.model, self.x)
        self.gamma = float(scores.max()) + 0.2
        self.graph = trace_model(self.model, shape)
        logits = self.model(self.x).detach()
        self.goal = decision_goal("energy", Margin(self.gamma, "id"), logits)
        guess = torch.full((len(self.x),), math.nan, dtype=torch.float64)
        self.whole = CoupledRadius(Asked(None, self.graph, max_radius=MOST), CoupledEffort(5, 8))
        batch = Batch(self.x, logits, guess)
        self.known = self.whole(batch, self.goal)
        self.batch = batch.knowing(self.known)

    def split(self, effort: PartsEffort = EFFORT) -> Tensor:
        parts = CoupledParts(self.whole, effort)
        return parts(self.batch, self.goal)

    def attacked(self) -> Tensor:
        return attack_radius(
            self.model, self.x, self.gamma, max_radius=MOST, steps=30, restarts=2, polish=30
        )


@pytest.fixture(scope="module")
def problems() -> Callable[[str], Problem]:
    made: dict[str, Problem] = {}

    def problem(name: str) -> Problem:
        if name not in made:
            made[name] = Problem(name)
        return made[name]

    return problem


@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_lies_inside_and_nothing_is_lost(
    name: str, problems: Callable[[str], Problem]
) -> None:
    problem = problems(name)
    radii = problem.split()
    assert (radii >= problem.known).all()
    assert (radii <= problem.attacked()).all()


def test_splits_go_further_than_whole_balls(problems: Callable[[str], Problem]) -> None:
    gains = [(problems(n).split() / problems(n).known).median() for n in ("mlp", "conv", "leaky")]
    assert max(gains) > 1.05


def test_more_splits_of_one_ball_prove_no_less(problems: Callable[[str], Problem]) -> None:
    problem = problems("conv")
    few, more = (problem.split(replace(EFFORT, balls=1, splits=n)) for n in (1, 3))
    assert (more >= few).all()


def test_nothing_is_tried_where_nothing_is_known(problems: Callable[[str], Problem]) -> None:
    problem = problems("mlp")
    parts = CoupledParts(problem.whole, EFFORT)
    known = torch.zeros_like(problem.known)
    known[1] = MOST
    found = parts(problem.batch.knowing(known), problem.goal)
    assert torch.equal(found, known)


def test_a_radius_does_not_depend_on_the_samples_beside_it(
    problems: Callable[[str], Problem],
) -> None:
    problem = problems("mlp")
    one = torch.tensor([2])
    parts = CoupledParts(problem.whole, EFFORT)
    alone = parts(problem.batch.of(one), problem.goal.of(one))
    assert torch.allclose(alone, problem.split()[one], rtol=1e-3)


def steal(honest: Callable[..., tuple[Tensor, Tensor, object]]) -> Callable[..., object]:
    def wrong(*args: object) -> object:
        gap, slope, bound = honest(*args)
        return gap * 1.5, slope, bound

    return wrong


def forget(
    honest: Callable[..., coupled_parts._Parts],
) -> Callable[..., coupled_parts._Parts]:
    """Of the two halves of a part only the first."""

    def wrong(parts: coupled_parts._Parts, neuron: Tensor) -> coupled_parts._Parts:
        return honest(parts, neuron).of(torch.arange(len(neuron)))

    return wrong


@pytest.mark.parametrize(("part", "wrong"), [("proven_gap", steal), ("_split", forget)])
def test_a_broken_part_is_found(
    part: str,
    wrong: Callable[..., object],
    problems: Callable[[str], Problem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coupled_parts, part, wrong(getattr(coupled_parts, part)))
    broken = 0
    for name in ("mlp", "conv", "leaky"):
        problem = problems(name)
        broken += int((problem.split(replace(EFFORT, balls=8)) > problem.attacked()).sum())
    assert broken > 0


def test_the_method_splits_where_it_is_asked_to(problems: Callable[[str], Problem]) -> None:
    problem = problems("conv")
    whole, split = (
        certify(
            problem.model, problem.x, problem.gamma, method="sdp-crown", max_radius=MOST,
            lipschitz=False, coupled=CoupledEffort(5, 8, splits), attack_restarts=1,
        )
        for splits in (0, 3)
    )  # fmt: skip
    assert (split.radius_certified >= whole.radius_certified).all()
    assert (split.radius_certified > 1.01 * whole.radius_certified).any()
    assert (split.radius_certified <= split.radius_attack).all()


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_prices_of_small_layers_are_those_of_one_at_a_time(kind: str, tall: bool) -> None:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    op: Conv | Linear
    if kind == "linear":
        shape = (9, 5) if tall else (5, 9)
        op, out, inside = Linear(normal(*shape), normal(shape[0])), (shape[0],), (shape[1],)
    else:
        channels = (4, 2) if tall else (2, 4)
        model = nn.Conv2d(channels[1], channels[0], 3, padding=1).double()
        found = trace_model(
            nn.Sequential(model, nn.Flatten(), nn.Linear(channels[0] * 9, 2).double()).eval(),
            (channels[1], 3, 3),
        ).nodes[1].op  # fmt: skip
        assert isinstance(found, Conv)
        op, out, inside = found, found.output_shape, found.input_shape
    matrix = dense_matrix(op)
    assert matrix is not None
    charge = normal(3, 2, *out).exp()
    charge[0, 0] = 0.0
    charge[2, 1] = torch.inf
    share, mask = normal(3, 2, *inside).exp(), torch.ones(3, *inside).double()
    mask.flatten(1)[1, ::2] = 0.0
    prices = ProvenPrices()(0, op, charge, mask, share)
    scaled = mask.unsqueeze(1) * share.rsqrt()
    assert prices[0, 0] == 0.0
    assert prices[2, 1] == math.inf
    for i, j in [(0, 1), (1, 0), (1, 1), (2, 0)]:
        rows, columns = charge[i, j].sqrt().flatten(), scaled[i, j].flatten()
        true = torch.linalg.matrix_norm(rows.unsqueeze(1) * matrix * columns, 2) ** 2
        assert true <= prices[i, j] <= 1.001 * true
        one = largest_eigenvalue(op, charge[i, j].sqrt(), scaled[i, j])
        assert float(prices[i, j]) == pytest.approx(one, rel=1e-3)
