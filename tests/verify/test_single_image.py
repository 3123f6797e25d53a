"""One image at a time: exact radii of an affine score, both sides, and what contradicts them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from greg_cert.config import VerifyConfig
from greg_cert.evaluation.decision import Decision
from greg_cert.verify.attack.plan import AttackResult
from greg_cert.verify.certificates import ContradictionWarning
from greg_cert.verify.run import single_image as module
from greg_cert.verify.run.single_image import verdicts_on

SLOPE = torch.tensor([0.6, -0.8, 0.0, 0.5], dtype=torch.float64)


def affine() -> nn.Module:
    """One logit w·x, so S(x) = −w·x exactly."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(SLOPE)
    return nn.Sequential(nn.Flatten(), layer)


def decision(threshold: float) -> Decision:
    return Decision("energy", 0.95, threshold, 20, 1, ("thing",))


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_radii_of_an_affine_score_are_exact_on_both_sides(norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 1, 2, 2, generator=generator)
    score = -(x.double().flatten(1) @ SLOPE.float().double())
    gamma = float(score.median()) + 1e-3
    slope = SLOPE.float().double()
    dual = float(slope.norm() if norm == "2" else slope.abs().sum())
    found = verdicts_on(affine(), x, decision(gamma), VerifyConfig(norm=norm, max_radius=5.0))
    assert {v.accepted for v in found} == {True, False}
    for v, s in zip(found, score.tolist(), strict=True):
        assert v.accepted == (s <= gamma)
        assert v.score == pytest.approx(s)
        exact = abs(gamma - s) / dual
        assert v.radius_certified == pytest.approx(exact, rel=1e-5)
        assert v.radius_certified <= exact * (1 + 1e-9)
        assert v.radius_attack == pytest.approx(exact, rel=1e-2)
        assert v.gradient_norm == pytest.approx(dual)
        assert v.attacked_score is not None
        assert (v.attacked_score <= gamma) != v.accepted
        assert (v.label, v.confidence) == (0, 1.0)


def test_the_order_of_images_is_kept_and_a_batch_changes_nothing() -> None:
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    gamma = decision(-0.2)
    quick = VerifyConfig(method="crown", cuts=0)
    together = verdicts_on(affine(), x, gamma, quick)
    for i, v in enumerate(together):
        (alone,) = verdicts_on(affine(), x[i : i + 1], gamma, quick)
        assert alone.score == pytest.approx(v.score)
        assert alone.radius_certified == pytest.approx(v.radius_certified, rel=1e-6)


def test_no_attack_within_reach_is_said_as_none() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    (v,) = verdicts_on(affine(), x, decision(100.0), VerifyConfig(max_radius=0.5))
    assert v.accepted
    assert v.radius_certified == pytest.approx(0.5)
    assert math.isinf(v.radius_attack)
    assert (v.attacked, v.attacked_label, v.attacked_score) == (None, None, None)


def test_a_certificate_that_an_attack_contradicts_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def liar(score: object, x: torch.Tensor, *_: object) -> AttackResult:
        return AttackResult(torch.full((len(x),), 1e-6, dtype=torch.float64), torch.zeros_like(x))

    monkeypatch.setattr(module, "smallest_attack", liar)
    with pytest.warns(ContradictionWarning, match=r"1 of 1 certificates .* crossed at 1e-06"):
        (v,) = verdicts_on(affine(), torch.full((1, 1, 2, 2), 0.5), decision(1.0), VerifyConfig())
    assert (v.status, v.radius_certified) == ("contradicted", 0.0)
    assert v.radius_refuted > 0.1
