"""PRO's scores against numerical slopes, and the proven bounds of the energy against attacks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from greg_cert.detectors import Detector, Penultimate, build_detector
from greg_cert.errors import UnsupportedModelError
from greg_cert.models import build_model
from greg_cert.scores import energy

NORM = {"certified-energy": math.inf, "certified-energy-l2": 2.0}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


X = draw(0, 6, 1, 6, 6).sigmoid()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A `cnn_small` with weights that make scores differ."""
    made = build_model(
        "cnn_small", num_classes=4, in_channels=1, image_size=6, mean=[0.5], std=[0.3]
    )
    with torch.no_grad():
        for seed, p in enumerate(made.parameters()):
            p.copy_(draw(seed, *p.shape) * (1.5 / p[0].numel() if p.ndim > 1 else 0.01) ** 0.5)
    return made.eval()


def numerical_sign(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Signs of central differences, a pixel at a time."""
    signs = torch.zeros_like(x).flatten(1)
    for i in range(signs.shape[1]):
        step = torch.zeros_like(signs)
        step[:, i] = 1e-6
        step = step.view_as(x)
        signs[:, i] = (score(x + step) - score(x - step)).sign()
    return signs.view_as(x)


@pytest.mark.parametrize(
    ("name", "of"),
    [("pro-msp", "msp"), ("pro-ent", "entropy"), ("pro-gen", "gen"), ("pro-energy", "ebo")],
)
def test_the_largest_score_on_a_path_of_signs(name: str, of: str, model: nn.Module) -> None:
    network = Penultimate(model)
    plain = build_detector(of, network)

    def score(x: Tensor) -> Tensor:
        return plain.scores_of_outputs(network.outputs(x, features=False))

    x, met = X, [score(X)]
    for _ in range(3):
        x = x + 0.05 * numerical_sign(score, x)
        met.append(score(x))
    found = build_detector(name, network, eps=0.05, steps=3)(X)
    torch.testing.assert_close(found, torch.stack(met).amax(0), rtol=1e-9, atol=1e-9)
    assert (found > met[0]).all()
    torch.testing.assert_close(build_detector(name, network, eps=0.0)(X), met[0])
    big = [build_detector(name, network, eps=0.4, steps=n)(X) for n in (1, 2, 6)]
    assert (big[0] <= big[1]).all()  # what is met stays met
    assert (big[1] <= big[2]).all()


def linear(*weights: list[float]) -> nn.Sequential:
    """Images (B, 1, 1, 2) to logits, one a row of weights."""
    layer = nn.Linear(2, len(weights), bias=False, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(torch.tensor(weights))
    return nn.Sequential(nn.Flatten(), layer)


def test_pro_msp_moves_where_float64_rounds_the_probability_to_one() -> None:
    """Its own slope is 0 there: p·(1 − p) of the larger logit, and a class without a weight."""
    x = torch.tensor([[[[0.9, 0.5]]]], dtype=torch.float64)
    found = build_detector("pro-msp", linear([100.0, 0.0], [0.0, 0.0]), eps=0.8)(x)
    assert float(found) == pytest.approx(-1 / (1 + math.exp(-10.0)), rel=1e-9)
    cold = build_detector("pro-msp:temperature=5", linear([50.0, 0.0], [0.0, 0.0]), eps=0.8)(x)
    assert float(cold) == pytest.approx(-1 / (1 + math.exp(-1.0)), rel=1e-9)


def test_pro_gen_is_finite_where_a_probability_is_zero() -> None:
    x = torch.tensor([[[[0.9, 0.5]]]], dtype=torch.float64)
    detector = build_detector("pro-gen", linear([1e4, 1.0], [0.0, 3.0], [0.0, 0.0]), eps=0.1)
    assert detector(x).isfinite().all()


@pytest.mark.parametrize("name", ["certified-energy", "certified-energy-l2"])
def test_the_bound_is_exact_for_one_linear_logit(name: str) -> None:
    """S = −w·x, whose largest value in the ball is −w·x + eps·‖w‖ of the dual norm."""
    x = torch.tensor([[[[0.25, 0.5]]], [[[1.0, 0.0]]]]).double()
    found = build_detector(name, linear([3.0, -4.0]), eps=0.2)(x)
    rise = 0.2 * (7.0 if name == "certified-energy" else 5.0)
    expected = torch.tensor([1.25 + rise, -3.0 + rise], dtype=torch.float64)
    assert (found >= expected).all()  # by what is given away for rounding
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def attacked(score: Callable[[Tensor], Tensor], x: Tensor, radius: float, norm: float) -> Tensor:
    """The largest score that ascent from 8 random starts finds in the ball."""
    best = score(x)
    for seed in range(8):
        delta = draw(seed, *x.shape)
        for step in range(30):
            size = delta.flatten(1).norm(p=norm, dim=1).clamp(min=1e-300).view(-1, 1, 1, 1)
            delta = delta * (radius / size).clamp(max=1e9 if step == 0 else 1.0)
            best = torch.maximum(best, score(x + delta).detach())
            leaf = (x + delta).requires_grad_()
            (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
            if norm == 2:
                length = slope.flatten(1).norm(dim=1).clamp(min=1e-300).view(-1, 1, 1, 1)
                delta = delta + 0.2 * radius * slope / length
            else:
                delta = (delta + 0.2 * radius * slope.sign()).clamp(-radius, radius)
    return best


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("name", NORM)
def test_no_attack_in_the_ball_exceeds_the_bound(
    name: str, classes: int | None, model: nn.Module
) -> None:
    """Nor with a class left out; and the bound is near what is found, so that it says something."""
    network = Penultimate(model, classes)
    clean = energy(network.logits(X))

    def score(x: Tensor) -> Tensor:
        return energy(network.logits(x))

    for eps in (0.0005, 0.02, 0.1):
        radius = eps if name == "certified-energy" else 6 * eps  # of 36 pixels
        bound = build_detector(name, network, eps=radius)(X)
        found = attacked(score, X, radius, NORM[name])
        assert (found > clean).all()
        assert (found <= bound + 1e-9).all()
        if eps == 0.0005:
            assert (bound - clean <= 1.2 * (found - clean)).all()


@pytest.mark.parametrize("name", NORM)
def test_the_bound_grows_from_the_energy_with_the_ball(name: str, model: nn.Module) -> None:
    def bound(eps: float) -> Tensor:
        return build_detector(name, model, eps=eps)(X)

    clean = energy(Penultimate(model).logits(X))
    torch.testing.assert_close(bound(1e-9), clean, rtol=1e-6, atol=1e-6)
    balls = [bound(eps) for eps in (1e-4, 1e-3, 0.01, 0.1, 1.0)]
    for smaller, larger in zip([clean, *balls], balls, strict=False):
        assert (smaller < larger).all()


def test_pro_energy_never_exceeds_its_proven_twin(model: nn.Module) -> None:
    network = Penultimate(model)
    search = build_detector("pro-energy", network)
    eps, steps = search.options["eps"], search.options["steps"]
    proof = build_detector("certified-energy", network)
    assert proof.options["eps"] == pytest.approx(float(eps or 0) * float(steps or 0))
    plain = build_detector("energy", network)(X)
    assert (plain < search(X)).all()
    assert (search(X) <= proof(X)).all()
    far = build_detector("pro-energy:eps=0.04,steps=4", network)(X)
    assert (far <= build_detector("certified-energy:eps=0.16", network)(X)).all()


@pytest.mark.parametrize("name", NORM)
def test_what_cannot_be_bounded_is_refused(name: str, model: nn.Module) -> None:
    def refusal(detector: Detector) -> str:
        with pytest.raises(UnsupportedModelError) as raised:
            detector(X)
        return str(raised.value)

    wavy = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(32, 3))
    assert "Hardsigmoid" in refusal(build_detector(name, wavy))
    line = (
        r"expected a network on which CROWN costs at most passes = 9 passes a sample, but got one "
        r"on which it costs \d\d"
    )
    assert re.fullmatch(line, refusal(build_detector(name, model, passes=9)))
