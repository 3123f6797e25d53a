"""The demonstration in the plane against direct evaluation and cases solved by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.metrics import threshold_at_tpr
from greg_cert.train.toy.measures import (
    Toy,
    ToyRun,
    crossing_radius,
    find_pair,
    run_toy,
    score_and_slope,
)
from greg_cert.train.toy.plane import (
    METHODS,
    ToySettings,
    build_classifier,
    draw_points,
    train_classifier,
)

SMALL = ToySettings(per_class=10, outliers=20, hidden=8, steps=12, grid=9)
NOTHING = np.zeros(0)


class Plane(nn.Module):
    """One logit w·x + b, so S = −w·x − b."""

    def __init__(self, w: tuple[float, float], b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = torch.tensor(w, dtype=torch.float64), b

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w + self.b).unsqueeze(1)


class Steps(nn.Module):
    """S = x for x < 1 and 1 + 5 (x − 1) beyond, whatever y."""

    def forward(self, x: Tensor) -> Tensor:
        s = x[:, :1] + 4 * (x[:, :1] - 1).clamp_min(0)
        return -s


def run_of(model: nn.Module, threshold: float) -> ToyRun:
    return ToyRun(model, threshold, {}, NOTHING, NOTHING, NOTHING, NOTHING)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return run_toy(SMALL)


def test_points_follow_from_the_seed_and_keep_their_distance() -> None:
    points, again = draw_points(SMALL), draw_points(SMALL)
    other = draw_points(replace(SMALL, seed=1))
    for name in ("train", "calibration", "test", "aux", "outliers"):
        assert torch.equal(getattr(points, name), getattr(again, name))
        assert not torch.equal(getattr(points, name), getattr(other, name))
    assert len(points.train) == 30
    assert points.aux.shape == points.outliers.shape == (20, 2)
    assert not torch.equal(points.aux, points.outliers)
    for outliers in (points.aux, points.outliers):
        assert torch.cdist(outliers, points.centres).min() > SMALL.gap
    own = torch.linalg.vector_norm(points.test - points.centres[points.labels], dim=1)
    assert own.max() < 5 * SMALL.spread


def test_both_detectors_begin_with_the_same_weights() -> None:
    state = torch.get_rng_state()
    one, two = (build_classifier(SMALL).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_a_correct_sample_the_penalty_changes_nothing() -> None:
    """Nothing is past such margins, so both methods minimise the same loss."""
    settings = replace(SMALL, steps=3, m_in=-1e3, m_out=1e3)
    points = draw_points(settings)
    energy, greg = (train_classifier(m, points, settings).state_dict() for m in METHODS)
    assert all(torch.equal(energy[name], greg[name]) for name in energy)


def test_slope_and_crossing_of_a_plane_are_exact() -> None:
    points = torch.tensor([[0.0, 0.0], [0.3, 1.0], [-2.0, 0.5]], dtype=torch.float64)
    model = Plane((-3.0, 4.0), b=1.0)  # S = 3x − 4y − 1
    score, slope = score_and_slope(model, points)
    np.testing.assert_allclose(score, [-1.0, -4.1, -9.0])
    np.testing.assert_allclose(slope, [5.0, 5.0, 5.0])
    found = crossing_radius(model, points, 0.0, step=0.01, rings=100)
    distance = score.abs() / 5  # 0.2, 0.82, 1.8
    assert (found[:2] >= distance[:2]).all()
    assert (found[:2] <= distance[:2] / math.cos(math.pi / 64) + 0.01).all()
    assert found[2].isinf()
    assert crossing_radius(model, points[:1], -2.0, step=0.01, rings=100)[0] >= 0.2  # from above


def test_a_pair_is_two_rejected_outliers_of_one_score_and_unlike_slope() -> None:
    settings = ToySettings(m_in=-50.0, m_out=50.0)  # scores within 2 are alike
    xs = torch.tensor([[0.9, 0.0], [1.1, 0.0], [0.1, 0.0], [9.0, 0.0]], dtype=torch.float64)
    assert find_pair(run_of(Steps(), 0.5), xs, settings) == (1, 0)
    assert find_pair(run_of(Steps(), 1.0), xs, settings) is None  # row 0 is accepted
    assert find_pair(run_of(Plane((1.0, 0.0)), -99.0), xs, settings) is None  # one slope
    narrow = replace(settings, m_in=-1.0, m_out=1.0)
    assert find_pair(run_of(Steps(), 0.0), xs, narrow) is None  # scores too far apart


def test_surfaces_equal_a_direct_evaluation(toy: Toy) -> None:
    assert list(toy.runs) == list(METHODS)
    for run in toy.runs.values():
        for row, column in ((0, 0), (8, 3), (2, 7)):
            x = torch.tensor([[toy.axis[column], toy.axis[row]]]).requires_grad_()
            score = -torch.logsumexp(run.model(x), dim=1)
            (gradient,) = torch.autograd.grad(score.sum(), x)
            assert run.score[row, column] == pytest.approx(score.item(), rel=1e-12)
            assert run.slope[row, column] == pytest.approx(gradient.norm().item(), rel=1e-12)
        with torch.no_grad():
            along = -torch.logsumexp(run.model(torch.from_numpy(toy.cut)), dim=1)
        np.testing.assert_allclose(run.cut_score, along, rtol=1e-12)
    one, two = toy.points.centres[:2].numpy()
    normal = np.array([one[1] - two[1], two[0] - one[0]])
    np.testing.assert_allclose((toy.cut - one) @ normal, 0, atol=1e-12)


def test_numbers_are_those_of_the_models(toy: Toy) -> None:
    for run in toy.runs.values():
        n, points = run.numbers, toy.points
        logits = run.model(points.test)
        assert n["accuracy"] == (logits.argmax(1) == points.labels).double().mean()
        score, slope = score_and_slope(run.model, points.test)
        calibration, _ = score_and_slope(run.model, points.calibration)
        assert n["threshold"] == run.threshold == threshold_at_tpr(calibration, 0.95)
        assert n["gradient_id_mean"] == pytest.approx(slope.mean().item())
        assert n["gradient_plane_max"] == run.slope.max()
        kept = points.test[score <= run.threshold]
        assert n["id_accepted"] == pytest.approx(len(kept) / len(score))
        near = crossing_radius(run.model, kept, run.threshold, step=0.05, rings=5)
        assert n["crossing_id_share"] == pytest.approx(near.isfinite().double().mean().item())


def test_equal_settings_give_equal_numbers(toy: Toy) -> None:
    again = run_toy(SMALL)
    for method, run in toy.runs.items():
        assert again.runs[method].numbers == run.numbers
        np.testing.assert_array_equal(again.runs[method].score, run.score)
    assert again.pair == toy.pair


def test_the_observer_sees_every_step() -> None:
    class Counter:
        def __init__(self) -> None:
            self.steps, self.seen = 0, set[str]()

        def begin(self, steps: int, done: int) -> None:
            assert (steps, done) == (12, 0)

        def step(self, stage: str, epoch: int, values: object) -> None:
            self.steps += 1
            self.seen.add(stage)

    watched: dict[str, Counter] = {}
    run_toy(SMALL, observe=lambda method: watched.setdefault(method, Counter()))
    assert {m: (c.steps, c.seen) for m, c in watched.items()} == {m: (12, {m}) for m in METHODS}


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"classes": 1}, {"grid": 0}, {"radius": 0.0}, {"gap": 9.0}]
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="'ce'"):
        train_classifier("ce", draw_points(SMALL), SMALL)
