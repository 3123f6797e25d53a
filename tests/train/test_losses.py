from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.outlier_losses import absent_class_loss, energy_margin_loss, uniform_loss
from greg_cert.train.objective.gradient_loss import correctly_detected, gradient_loss

F64 = torch.float64


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


# value loss


def test_margin_loss_and_its_gradient_against_numpy() -> None:
    rng = np.random.default_rng(0)
    ids, ood, m_in, m_out = rng.normal(-5, 3, 40), rng.normal(-3, 3, 25), -6.0, -2.0
    tensors = [torch.from_numpy(v).requires_grad_() for v in (ids, ood)]
    loss = energy_margin_loss(*tensors, m_in=m_in, m_out=m_out)
    above, below = np.maximum(0, ids - m_in), np.maximum(0, m_out - ood)
    assert loss.item() == pytest.approx(np.mean(above**2) + np.mean(below**2), rel=1e-14)
    on_ids, on_ood = torch.autograd.grad(loss, tensors)
    np.testing.assert_allclose(on_ids.numpy(), 2 * above / 40, rtol=1e-13)
    np.testing.assert_allclose(on_ood.numpy(), -2 * below / 25, rtol=1e-13)
    assert (on_ids >= 0).all()  # descent lowers ID scores ...
    assert (on_ood <= 0).all()  # ... and raises those of outliers


def test_empty_sets_contribute_nothing() -> None:
    empty = torch.zeros(0, dtype=F64, requires_grad=True)
    assert energy_margin_loss(empty, vector(-1), m_in=0, m_out=1).item() == 4.0
    assert energy_margin_loss(vector(2), empty, m_in=0, m_out=1).item() == 4.0
    loss = energy_margin_loss(empty, empty, m_in=0, m_out=1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    assert gradient_loss(nothing, none, nothing, none).item() == 0.0


def test_an_infinite_margin_switches_one_side_off() -> None:
    loss = energy_margin_loss(vector(2, 4), vector(-100), m_in=0, m_out=math.inf)
    assert loss.item() == math.inf
    loss = energy_margin_loss(vector(1e20), vector(-1e20), m_in=0.0, m_out=1.0)
    assert loss.item() == pytest.approx(2e40)


@pytest.mark.parametrize(
    ("m_in", "m_out"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)]
)
def test_margins_in_the_wrong_order_are_refused(m_in: float, m_out: float) -> None:
    with pytest.raises(UsageError, match="expected m_in < m_out") as caught:
        energy_margin_loss(vector(0), vector(0), m_in=m_in, m_out=m_out)
    assert f"m_in = {m_in} and m_out = {m_out}" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_scores_of_another_shape_are_refused_by_name(shape: tuple[int, ...]) -> None:
    bad = torch.zeros(shape)
    for name, pair in {"id_scores": (bad, vector(0)), "ood_scores": (vector(0), bad)}.items():
        with pytest.raises(UsageError, match=rf"{name} of shape \(N,\)") as caught:
            energy_margin_loss(*pair, m_in=0, m_out=1)
        assert str(shape) in str(caught.value)


# losses of logits


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_losses_of_logits_are_cross_entropies_to_their_target(scale: float) -> None:
    """Mean −Σ_k t_k log p_k of the probabilities themselves, t = 1/K or the last class."""
    logits = scale * np.random.default_rng(2).normal(size=(9, 6))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probability = powers / powers.sum(1, keepdims=True)
    uniform, last = np.full((9, 6), 1 / 6), np.eye(6)[np.full(9, 5)]
    for loss, target in ((uniform_loss, uniform), (absent_class_loss, last)):
        given = torch.from_numpy(logits).requires_grad_()
        found = loss(given)
        expected = -(target * np.log(probability)).sum(1).mean()
        assert found.item() == pytest.approx(expected, rel=1e-12)
        (slope,) = torch.autograd.grad(found, given)
        np.testing.assert_allclose(slope.numpy(), (probability - target) / 9, atol=1e-15)


# who is smoothed


def test_correctly_detected_by_hand() -> None:
    scores = vector(-26, -25, -24, -8, -7, -6)
    everyone = torch.ones(6, dtype=torch.bool)
    got = correctly_detected(scores, everyone, m_in=-25, m_out=-7)
    assert got.tolist() == [True, True, False, False, False, False]
    got = correctly_detected(scores, ~everyone, m_in=-25, m_out=-7)
    assert got.tolist() == [False, False, False, False, True, True]
    mixed = flags(0, 1, 0, 1, 0, 1)
    got = correctly_detected(scores, mixed, m_in=-25, m_out=-7)
    assert got.tolist() == [False, True, False, False, True, False]


def test_a_sample_is_smoothed_or_moved_but_never_both() -> None:
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=F64)
    for name, is_id in {"id": torch.ones(200), "ood": torch.zeros(200)}.items():
        s = scores.clone().requires_grad_()
        empty = torch.zeros(0, dtype=F64)
        pair = (s, empty) if name == "id" else (empty, s)
        loss = energy_margin_loss(*pair, m_in=-0.3, m_out=0.4)
        (moved,) = torch.autograd.grad(loss, s)
        smoothed = correctly_detected(scores, is_id.bool(), m_in=-0.3, m_out=0.4)
        assert torch.equal(smoothed, moved == 0)
        assert 20 < smoothed.sum() < 180


# gradient loss


def test_gradient_loss_against_numpy() -> None:
    rng = np.random.default_rng(1)
    norms, masks = [rng.random(9), rng.random(6)], [rng.random(9) < 0.5, rng.random(6) < 0.5]
    tensors = [torch.from_numpy(v).requires_grad_() for v in norms]
    chosen = [torch.from_numpy(v) for v in masks]
    loss = gradient_loss(tensors[0], chosen[0], tensors[1], chosen[1])
    expected = sum(n[m].sum() / len(n) for n, m in zip(norms, masks, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    for tensor, mask, n in zip(torch.autograd.grad(loss, tensors), masks, (9, 6), strict=True):
        np.testing.assert_allclose(tensor.numpy(), mask / n, rtol=1e-14)
