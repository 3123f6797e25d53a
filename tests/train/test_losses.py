from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from greg_cert.errors import UsageError
from greg_cert.outlier_losses import energy_margin_loss
from greg_cert.scores import energy
from greg_cert.train.objective.gradient_loss import correctly_detected, gradient_loss
from greg_cert.train.objective.penalty import gradient_penalty

F64 = torch.float64


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


# value loss


def test_margin_loss_by_hand() -> None:
    ids, ood = vector(-30, -24, -20, -25), vector(-10, -7, 0)
    # ID: excess 0, 1, 5, 0 over -25; outliers: 3, 0, 0 short of -7.
    expected = (1 + 25) / 4 + 9 / 3
    assert energy_margin_loss(ids, ood, m_in=-25, m_out=-7).item() == expected


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


def test_no_value_loss_inside_the_margins() -> None:
    ids, ood = vector(-3, -2).requires_grad_(), vector(1, 5).requires_grad_()
    loss = energy_margin_loss(ids, ood, m_in=-2, m_out=1)
    assert loss.item() == 0.0
    assert all(not g.any() for g in torch.autograd.grad(loss, (ids, ood)))


def test_the_two_sides_do_not_mix() -> None:
    """Each set has a mean of its own, whatever the size of the other."""
    ids, ood = vector(1, 3), vector(-1, -4, -2, 0)
    both = energy_margin_loss(ids, ood, m_in=0, m_out=1)
    alone = energy_margin_loss(ids, vector(2), m_in=0, m_out=1)
    other = energy_margin_loss(vector(-1), ood, m_in=0, m_out=1)
    assert both.item() == alone.item() + other.item()
    assert alone.item() == 5.0
    doubled = energy_margin_loss(ids.repeat(2), ood, m_in=0, m_out=1)
    assert doubled.item() == both.item()


def test_gradients_of_the_value_loss_of_both_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    ids, ood = (3 * torch.randn(6, generator=generator, dtype=F64) for _ in range(2))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return energy_margin_loss(a, b, m_in=-1.0, m_out=0.5)

    inputs = (ids.requires_grad_(), ood.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


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


def test_gradient_loss_by_hand() -> None:
    loss = gradient_loss(
        vector(1, 2, 6, 100), flags(1, 0, 1, 0), vector(5, 4, 3, 7, 9), flags(0, 1, 1, 0, 0)
    )
    # Means over all samples, smoothed or not.
    assert loss.item() == 7 / 4 + 7 / 5


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


def test_gradient_loss_without_correct_samples_is_zero() -> None:
    assert gradient_loss(vector(1, 2), flags(0, 0), vector(3), flags(0)).item() == 0.0


# the whole objective: L_CE + 0.1 L_S + 1 L_grad

LABELS = torch.tensor([0, 2, 1, 2, 0])
M_IN, M_OUT = -1.5, -1.42


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).to(F64)
        for weight in model.parameters():
            nn.init.normal_(weight)
        return model


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(5, 4, generator=generator, dtype=F64), torch.randn(
        4, 4, generator=generator, dtype=F64
    )


def ours(model: nn.Module, ids: Tensor, aux: Tensor, estimator: str) -> Tensor:
    def score(x: Tensor) -> Tensor:
        return energy(model(x))

    x = torch.cat([ids, aux]).requires_grad_()
    logits = model(x)
    scores = energy(logits)
    n = len(ids)
    norms = gradient_penalty(score, x, scores=scores, estimator=estimator)
    is_id = torch.arange(len(x)) < n
    good = correctly_detected(scores, is_id, m_in=M_IN, m_out=M_OUT)
    return (
        nn.functional.cross_entropy(logits[:n], LABELS)
        + 0.1 * energy_margin_loss(scores[:n], scores[n:], m_in=M_IN, m_out=M_OUT)
        + 1.0 * gradient_loss(norms[:n], good[:n], norms[n:], good[n:])
    )


def reference(model: nn.Module, weights: dict[str, Tensor], ids: Tensor, aux: Tensor) -> Tensor:
    """Sample by sample from the definitions, with torch.func for the slopes."""

    def logits(x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, weights, (x.unsqueeze(0),))
        return out[0]

    def score(x: Tensor) -> Tensor:
        return -torch.log(torch.exp(logits(x)).sum())

    def slopes(xs: Tensor) -> Tensor:
        out: Tensor = vmap(grad(score))(xs)
        return (out**2).sum(1).sqrt()

    total = torch.zeros((), dtype=F64)
    for x, y, slope in zip(ids, LABELS, slopes(ids), strict=True):
        s = score(x)
        total = total + (-logits(x)[y] - s) / 5
        total = total + (0.1 * (s - M_IN) ** 2 if s > M_IN else slope) / 5
    for x, slope in zip(aux, slopes(aux), strict=True):
        s = score(x)
        total = total + (0.1 * (M_OUT - s) ** 2 if s < M_OUT else slope) / 4
    return total


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("estimator", "tolerance"), [("double-backward", 1e-10), ("finite-difference", 1e-5)]
)
def test_whole_objective_and_its_weight_gradient(
    seed: int, estimator: str, tolerance: float
) -> None:
    model, (ids, aux) = network(seed), batch(seed)
    weights = dict(model.named_parameters())
    got = ours(model, ids, aux, estimator)
    expected = reference(model, weights, ids, aux)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    a = torch.autograd.grad(got, list(weights.values()))
    b = torch.autograd.grad(expected, list(weights.values()))
    for name, left, right in zip(weights, a, b, strict=True):
        torch.testing.assert_close(
            left, right, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_objective_above_meets_every_case() -> None:
    """Over the seeds, both sets have samples on both sides of their margins."""
    for part, margin in ((0, M_IN), (1, M_OUT)):
        with torch.no_grad():
            scores = torch.cat([energy(network(s)(batch(s)[part])) for s in (0, 1, 2)])
        assert 0 < int((scores <= margin).sum()) < len(scores)
