"""The objective against the same terms taken apart, with BatchNorm and dropout in training mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from greg_cert.models import Classifier, build_model
from greg_cert.outlier_losses import OUTLIER_LOSSES, OutlierLoss
from greg_cert.scores import energy, score_of
from greg_cert.train.objective.step import Batch, Objective, Terms

# Between the scores of the batch, so that each mask takes some samples and leaves some.
M_IN, M_OUT = -1.567, -1.56
TERMS = Terms(
    outlier_loss="margin",
    gradient=True,
    m_in=M_IN,
    m_out=M_OUT,
    lambda_score=0.1,
    lambda_grad=1.0,
    estimator="finite-difference",
)


class _Noisy(nn.Module):
    """BatchNorm and dropout, on flat features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(12, 8),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def _noisy_model() -> Classifier:
    torch.manual_seed(3)
    return Classifier(_Noisy(), 8, num_classes=5, mean=[0.5], std=[0.25]).double().train()


def _plain_model() -> Classifier:
    torch.manual_seed(3)
    model = build_model("mlp", num_classes=5, in_channels=1, image_size=4, mean=[0.5], std=[0.25])
    return model.double().train()


def _batch(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.rand(n, 1, 4, 4, generator=g, dtype=torch.float64)  # noqa: E731
    return Batch(draw(6), torch.randint(5, (6,), generator=g), draw(4), draw(5))


@pytest.mark.parametrize(
    ("estimator", "tolerance"), [("double-backward", 1e-9), ("finite-difference", 1e-4)]
)
def test_loss_and_weight_gradient_are_those_of_the_terms_taken_apart(
    estimator: str, tolerance: float
) -> None:
    """Sample by sample from the definitions."""
    model, batch = _plain_model(), _batch()
    out = Objective(model)(batch, replace(TERMS, estimator=estimator))
    ce = nn.functional.cross_entropy(model(batch.images), batch.labels)
    s_in, s_low = energy(model(batch.images)), energy(model(batch.low))
    value = torch.relu(s_in - M_IN).pow(2).mean() + torch.relu(M_OUT - s_low).pow(2).mean()
    slope = torch.zeros((), dtype=torch.float64)
    for images, correct in (
        (batch.images, lambda s: s <= M_IN),
        (batch.high, lambda s: s >= M_OUT),
    ):
        smoothed = [x[None] for x in images if correct(energy(model(x[None]))[0])]
        assert 0 < len(smoothed) < len(images), "both masked and unmasked samples wanted"
        for x in smoothed:
            gradient = torch.autograd.functional.jacobian(
                lambda z: energy(model(z)).sum(), x, create_graph=True
            )
            slope = slope + gradient.norm() / len(images)
    expected = ce + 0.1 * value + slope
    torch.testing.assert_close(out["loss"], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out["grad_loss"], slope.detach(), rtol=1e-9, atol=1e-9)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for got, want in zip(torch.autograd.grad(out["loss"], parameters), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [_plain_model, _noisy_model])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("space", ["pixel", "normalized"])
def test_both_estimators_give_the_same_weight_gradients_in_training_mode(
    make: Callable[[], Classifier], share: float, space: str
) -> None:
    """With shared batch statistics, dropout, unequal numbers of samples, and some masked out."""
    batch = _batch()
    batch = Batch(batch.images, batch.labels, batch.high, batch.high)  # 6 and 5 samples
    torch.manual_seed(7)
    scores = energy(make()(torch.cat([batch.images, batch.high]))).detach()
    m_in, m_out = 100.0, 101.0  # no outlier is correct: all that is left are ID samples
    if share < 1:
        m_in = float(scores[:6].quantile(share)) + 1e-9
        m_out = max(float(scores[6:].quantile(1 - share)) - 1e-9, m_in + 1e-9)
    grads, losses = [], []
    for estimator in ("finite-difference", "double-backward"):
        model = make()
        terms = replace(TERMS, estimator=estimator, m_in=m_in, m_out=m_out, gradient_space=space)
        torch.manual_seed(7)
        out = Objective(model)(batch, replace(terms, outlier_loss="none"))
        out["loss"].backward()
        losses.append(float(out["grad_loss"]))
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert grads[1].norm() > 0
    assert (grads[0] - grads[1]).norm() <= 1e-3 * grads[1].norm()


def test_running_statistics_move_once_a_step() -> None:
    with_penalty, without = _noisy_model(), _noisy_model()
    batch = _batch()
    torch.manual_seed(1)
    Objective(with_penalty)(batch, TERMS)["loss"].backward()
    torch.manual_seed(1)
    Objective(without)(batch, replace(TERMS, gradient=False))["loss"].backward()
    for a, b in zip(with_penalty.buffers(), without.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_penalty_leaves_the_random_stream_as_one_pass_would() -> None:
    states = []
    for use_gradient in (True, False):
        torch.manual_seed(1)
        Objective(_noisy_model())(_batch(), replace(TERMS, gradient=use_gradient))
        torch.manual_seed(1)
        Objective(_noisy_model())(_batch(), replace(TERMS, gradient=use_gradient))
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])


def test_measuring_changes_neither_loss_nor_gradient() -> None:
    results = []
    for measure in (False, True):
        model = copy.deepcopy(_plain_model())
        out = Objective(model)(_batch(), TERMS, measure)
        out["loss"].backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert ("grad_norm_id" in out) is measure
    torch.testing.assert_close(results[0], results[1])


def _between(scores: Tensor) -> float:
    """A margin that no score lies on."""
    ordered = scores.sort().values
    return float((ordered[2] + ordered[3]) / 2)


@pytest.mark.parametrize("score", ["max_softmax", "max_logit", "energy"])
@pytest.mark.parametrize("outlier_loss", ["uniform", "margin", "none"])
def test_the_penalty_plugs_into_any_score_and_any_outlier_loss(
    score: str, outlier_loss: str
) -> None:
    model, batch = _plain_model(), _batch()
    scored = score_of(score)
    values = scored(model(torch.cat([batch.images, batch.high]))).detach()
    m_in = _between(values[:6])
    m_out = max(_between(values[6:]), m_in + 1e-9)
    terms = replace(TERMS, score=score, outlier_loss=outlier_loss, m_in=m_in, m_out=m_out)
    out = Objective(model)(batch, terms)
    low = model(batch.low)
    if outlier_loss == "uniform":
        uniform = torch.full((4, 5), 0.2, dtype=torch.float64)
        expected = nn.functional.cross_entropy(low, uniform)
        torch.testing.assert_close(out["score_loss"], expected)
    slope = torch.zeros((), dtype=torch.float64)
    for images, sign in ((batch.images, 1), (batch.high, -1)):
        x = images.clone().requires_grad_()
        s = scored(model(x))
        (gradient,) = torch.autograd.grad(s.sum(), x)
        good = (s <= m_in) if sign == 1 else (s >= m_out)
        slope = slope + (gradient.flatten(1).norm(dim=1) * good).mean()
    torch.testing.assert_close(out["grad_loss"], slope.detach(), rtol=1e-6, atol=1e-9)


def test_the_absent_class_is_that_of_the_outliers() -> None:
    model, batch = _plain_model(), _batch()
    terms = replace(TERMS, score="absent_class", outlier_loss="absent_class", gradient=False)
    out = Objective(model)(batch, terms)
    labels = torch.full((4,), 4)
    expected = nn.functional.cross_entropy(model(batch.low), labels)
    torch.testing.assert_close(out["score_loss"], expected.detach())


def test_an_outlier_loss_is_one_entry_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = OutlierLoss(lambda o: o.ood_logits.square().mean() - o.id_scores.mean(), source="here")
    monkeypatch.setitem(OUTLIER_LOSSES, "mine", mine)
    model, batch = _plain_model(), _batch()
    out = Objective(model)(batch, replace(TERMS, outlier_loss="mine", gradient=False))
    expected = model(batch.low).square().mean() - energy(model(batch.images)).mean()
    torch.testing.assert_close(out["score_loss"], expected.detach())
