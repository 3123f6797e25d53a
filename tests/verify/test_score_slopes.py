"""Lipschitz constants of every score: boxes, forms, several radii, and the integral."""

from __future__ import annotations

import math

import pytest
import torch
from problems import climb, in_ball
from score_oracles import SCORE_NAMES, crossings, dual, middle, network, past, score_by_hand
from torch import Tensor, nn

from greg_cert.verify import certify, lipschitz_bound
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import FORMS, LipschitzBound, score_box

NORMS = (2.0, math.inf)


def steepest_found(model: nn.Module, score: str, x: Tensor, radius: float, norm: float) -> Tensor:
    """The largest dual norm (B,) of ∇S at points of the ball, by autograd and by hand."""

    def slope(y: Tensor) -> Tensor:
        leaf = y.detach().requires_grad_()
        value = score_by_hand(score, model(leaf)).sum()
        return dual(torch.autograd.grad(value, leaf)[0].flatten(1), norm)

    radii = torch.full((len(x),), radius, dtype=x.dtype)
    tried = [in_ball(x, radii, norm, seed) for seed in range(15)] + [x]
    for sign in (1.0, -1.0):
        tried.append(climb(lambda y, s=sign: s * score_by_hand(score, model(y)), x, radii, norm))
    return torch.stack([slope(y) for y in tried]).amax(0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_no_slope_exceeds_any_form_of_the_bound(score: str, norm: float) -> None:
    for name in ("mlp", "residual" if norm == 2.0 else "leaky", "1"):
        model, x = network(name)
        for radius in (0.02, 0.4):
            found = steepest_found(model, score, x, radius, norm)
            bound = {
                form: lipschitz_bound(model, x, radius, norm=norm, score=score, form=form)
                for form in ("hybrid", "interval", "spectral")
            }
            for form, values in bound.items():
                assert bool((found <= values * (1 + 1e-9) + 1e-12).all()), (name, form)
            least = torch.minimum(bound["interval"], bound["spectral"])
            assert bool((bound["hybrid"] <= least * (1 + 1e-9)).all()), name


def test_a_wrong_score_box_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_sign(*given: Tensor) -> score_box.ScoreBox:
        box = score_box._max_softmax_box(*given)
        return score_box.ScoreBox(box.low, box.high * 0.3, steepest=box.steepest * 0.3)  # type: ignore[operator]

    monkeypatch.setattr(
        "greg_cert.verify.lipschitz.bound.score_box", lambda score, *given: reversed_sign(*given)
    )
    with pytest.raises(AssertionError):
        test_no_slope_exceeds_any_form_of_the_bound("max_softmax", 2.0)


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_boxes_hold_the_derivative_and_are_attained(score: str) -> None:
    """−∂S/∂f at logits anywhere in a box, by autograd, among them its corners."""
    generator = torch.Generator().manual_seed(2)
    centre = 2 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    spread = torch.tensor([0.0, 1e-3, 0.3, 2.0] * 3, dtype=torch.float64).unsqueeze(1)
    box = score_box.score_box(score, centre - spread, centre + spread)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
    inner = 2 * torch.rand(300, 3, generator=generator, dtype=torch.float64) - 1
    for move in torch.cat([corners, inner]):
        leaf = (centre + spread * move).requires_grad_()
        value = -score_by_hand(score, leaf).sum()
        (slope,) = torch.autograd.grad(value, leaf)
        assert bool((slope >= box.low - 1e-12).all())
        assert bool((slope <= box.high + 1e-12).all())
        if box.steepest is not None:
            s = -score_by_hand(score, leaf.detach())
            assert bool((s * (1 - s) <= box.steepest + 1e-12).all())


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_several_radii_never_fall_and_are_no_looser(score: str) -> None:
    model, x = network("mlp")
    radii = [0.3, 0.02, 0.1, 0.1]
    together = lipschitz_bound(model, x, radii, score=score)
    alone = torch.stack([lipschitz_bound(model, x, r, score=score) for r in radii], 1)
    assert bool((together <= alone).all())
    order = torch.tensor(radii).argsort()
    assert bool((together[:, order].diff(dim=1) >= 0).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_the_integral_reaches_as_far_as_the_constant(score: str, norm: float) -> None:
    model, x = network("mlp")
    threshold = middle(model, score, x)
    plain, further = (
        certify(
            model, x, threshold, norm=norm, score=score, method="lipschitz", attack=integrated,
            lipschitz_integrated=integrated, attack_steps=10, attack_restarts=1,
        )
        for integrated in (False, True)
    )  # fmt: skip
    assert bool((further.radius_lipschitz >= plain.radius_lipschitz).all())
    assert bool((further.radius_lipschitz > 1.01 * plain.radius_lipschitz).any())
    assert bool((further.radius_lipschitz <= further.radius_attack).all())
    wrong = past(model, score, threshold, "id")
    assert not bool(crossings(wrong, x, further.radius_lipschitz, norm, draws=20).any())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_logits_without_bounds_give_no_slope_bound(score: str, form: str) -> None:
    """Pre-activations are finite, bounds of the logits are not: never NaN, and never too small."""
    model, x = network("mlp")
    graph = trace_model(model, (5,))
    radii = torch.full((len(x),), 0.1, dtype=x.dtype)
    relaxation = NativeEngine(graph).relax(x, radii, 2.0)
    finite = LipschitzBound(graph, score)(relaxation, x, 2.0, form)

    class Unbounded:
        preactivations = relaxation.preactivations

        def lower(self, rows: Tensor) -> Tensor:
            return torch.full(rows.shape[:2], -math.inf, dtype=rows.dtype)

        def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

    bound = LipschitzBound(graph, score)(Unbounded(), x, 2.0, form)
    assert bool((bound >= finite).all())
