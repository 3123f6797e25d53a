from __future__ import annotations

import math

import pytest
import scipy.special
import torch
from pytorch_ood.detector import EnergyBased

from greg_cert.errors import GregCertError, UsageError
from greg_cert.scores import SCORES, absent_class, energy, max_logit, max_softmax, score_of


def made(rows: int = 7, classes: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def test_hand_values() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [6.0, 3.0, 1.0]]).double().log()
    expected = torch.tensor([-math.log(6), -math.log(3), -math.log(10)], dtype=torch.float64)
    torch.testing.assert_close(energy(logits), expected, rtol=0, atol=1e-15)


def test_a_single_class_gives_minus_its_logit() -> None:
    assert energy(torch.tensor([[2.5], [-3.0]])).tolist() == [-2.5, 3.0]


def test_a_shift_of_the_logits_shifts_the_score_by_as_much_downwards() -> None:
    logits = made()
    torch.testing.assert_close(energy(logits + 7.5), energy(logits) - 7.5)


def test_equals_scipy() -> None:
    logits = made(50, 10)
    expected = torch.from_numpy(-scipy.special.logsumexp(logits.numpy(), axis=1))
    torch.testing.assert_close(energy(logits), expected, rtol=1e-14, atol=1e-14)


def test_equals_pytorch_ood() -> None:
    logits = made(50, 10).float()
    assert torch.equal(energy(logits), EnergyBased.score(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_do_not_overflow(dtype: torch.dtype) -> None:
    logits = torch.tensor(
        [[1e20, 0.0, -1e20], [-1e20, -1e20, -1e20], [1e20, 1e20, 1e20], [-1e20, 0.0, 0.0]],
        dtype=dtype,
    )
    expected = torch.tensor([-1e20, 1e20, -1e20, -math.log(2)], dtype=dtype)
    torch.testing.assert_close(energy(logits), expected, rtol=1e-6, atol=0)


def test_a_class_at_minus_infinity_does_not_count() -> None:
    logits = torch.tensor([[-math.inf, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    score = energy(logits)
    assert score.item() == energy(torch.tensor([[1.0, 2.0]], dtype=torch.float64)).item()
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    assert gradient[0, 0].item() == 0.0
    assert torch.isfinite(gradient).all()


def test_no_evidence_at_all_is_the_most_ood() -> None:
    assert energy(torch.full((1, 3), -math.inf)).item() == math.inf


def test_gradient_is_minus_softmax() -> None:
    logits = made().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(logits).sum(), logits)
    expected = torch.from_numpy(-scipy.special.softmax(logits.detach().numpy(), axis=1))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_gradients_of_both_orders() -> None:
    logits = made(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(energy, (logits,))
    assert torch.autograd.gradgradcheck(energy, (logits,))


def test_an_empty_batch_has_no_scores() -> None:
    assert energy(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (4, 0), ()])
def test_other_shapes_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"logits of shape \(B, K\)") as caught:
        energy(torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value)
    assert isinstance(caught.value, GregCertError)
    assert isinstance(caught.value, ValueError)


# other scores


def test_max_softmax_and_max_logit_agree_with_another_library() -> None:
    from pytorch_ood.detector import MaxLogit, MaxSoftmax

    logits = made()
    torch.testing.assert_close(max_softmax(logits), MaxSoftmax.score(logits))
    torch.testing.assert_close(max_logit(logits), MaxLogit.score(logits))


def test_the_absent_class_orders_as_its_probability_and_is_its_log_odds() -> None:
    logits = made()
    probability = torch.softmax(logits, dim=1)[:, -1]
    torch.testing.assert_close(absent_class(logits), torch.logit(probability))
    assert torch.equal(absent_class(logits).argsort(), probability.argsort())


def test_scores_by_name_are_higher_for_less_confident_logits() -> None:
    sure = torch.tensor([[9.0, 0.0, 0.0, -9.0]])
    unsure = torch.tensor([[0.1, 0.0, 0.0, 0.1]])
    for name in SCORES:
        assert float(score_of(name)(unsure)) > float(score_of(name)(sure)), name
    with pytest.raises(UsageError, match=r"energy.*'entropy'"):
        score_of("entropy")
    with pytest.raises(UsageError, match="K >= 2"):
        absent_class(torch.zeros(3, 1))
