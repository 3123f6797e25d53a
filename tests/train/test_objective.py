"""The objective against the same terms taken apart, with BatchNorm and dropout in training mode."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from greg_cert.models import Classifier, build_model
from greg_cert.scores import energy
from greg_cert.train.objective import Batch, Objective, Terms

# Between the scores of the batch, so that each mask takes some samples and leaves some.
M_IN, M_OUT = -1.567, -1.56
TERMS = Terms(
    use_score=True,
    use_gradient=True,
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


def test_the_loss_is_the_weighted_sum_of_its_terms_taken_apart() -> None:
    model, batch = _plain_model(), _batch()
    assert batch.low is not None
    assert batch.high is not None
    out = Objective(model)(batch, TERMS)
    ce = nn.functional.cross_entropy(model(batch.images), batch.labels)
    s_in, s_low = energy(model(batch.images)), energy(model(batch.low))
    value = torch.relu(s_in - M_IN).pow(2).mean() + torch.relu(M_OUT - s_low).pow(2).mean()
    slope = torch.zeros((), dtype=torch.float64)
    for images, correct in (
        (batch.images, lambda s: s <= M_IN),
        (batch.high, lambda s: s >= M_OUT),
    ):
        norms = [
            torch.autograd.functional.jacobian(lambda z: energy(model(z)).sum(), x[None]).norm()
            * float(correct(energy(model(x[None]))[0]))
            for x in images
        ]
        assert 0 < sum(n > 0 for n in norms) < len(norms), "both masked and unmasked samples wanted"
        slope = slope + torch.stack(norms).mean()
    expected = ce + 0.1 * value + slope
    torch.testing.assert_close(out["loss"], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out["grad_loss"], slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [_plain_model, _noisy_model])
def test_both_estimators_give_the_same_weight_gradients_in_training_mode(make: object) -> None:
    """With shared batch statistics and dropout masks too: the second pass must replay the first."""
    grads = []
    for estimator in ("finite-difference", "double-backward"):
        model = make()  # type: ignore[operator]
        # One mask over all: per-sample norms of a coupled batch are only right summed up.
        terms = replace(TERMS, estimator=estimator, m_in=100.0, m_out=101.0, lambda_score=0.0)
        batch = _batch()
        batch = Batch(batch.images, batch.labels)
        torch.manual_seed(7)
        out = Objective(model)(batch, replace(terms, use_score=False))
        out["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert grads[1].norm() > 0
    assert (grads[0] - grads[1]).norm() <= 1e-3 * grads[1].norm()


def test_running_statistics_move_once_a_step() -> None:
    with_penalty, without = _noisy_model(), _noisy_model()
    batch = _batch()
    torch.manual_seed(1)
    Objective(with_penalty)(batch, TERMS)["loss"].backward()
    torch.manual_seed(1)
    Objective(without)(batch, replace(TERMS, use_gradient=False))["loss"].backward()
    for a, b in zip(with_penalty.buffers(), without.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_penalty_leaves_the_random_stream_as_one_pass_would() -> None:
    states = []
    for use_gradient in (True, False):
        torch.manual_seed(1)
        Objective(_noisy_model())(_batch(), replace(TERMS, use_gradient=use_gradient))
        torch.manual_seed(1)
        Objective(_noisy_model())(_batch(), replace(TERMS, use_gradient=use_gradient))
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
