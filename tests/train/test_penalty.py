from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from greg_cert.errors import UsageError
from greg_cert.scores import energy
from greg_cert.train.objective.penalty import ESTIMATORS, gradient_penalty

F64 = torch.float64
Score = Callable[[Tensor], Tensor]


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        return model.to(F64).eval()


def mlp(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 20), activation(), nn.Linear(20, 16), activation(), nn.Linear(16, 4)
        ),
        seed,
    )


def conv_net(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            activation(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(8 * 16, 5),
        ),
        seed,
    )


def tiny_smooth(seed: int = 0) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), seed)


def points(count: int = 6, size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=F64)


def pictures(count: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator, dtype=F64)


def case(kind: str, seed: int, activation: type[nn.Module] = nn.ReLU) -> tuple[nn.Module, Tensor]:
    if kind == "mlp":
        return mlp(seed, activation), points(seed=seed)
    return conv_net(seed, activation), pictures(seed=seed)


def score_of(model: nn.Module) -> Score:
    return lambda x: energy(model(x))


def exact_norms(model: nn.Module, x: Tensor) -> Tensor:
    """‖∇S‖ of each sample alone, by torch.func."""

    def single(one: Tensor) -> Tensor:
        return -torch.logsumexp(model(one.unsqueeze(0))[0], dim=0)

    slopes: Tensor = vmap(grad(single))(x)
    return slopes.flatten(1).norm(dim=1)


def weight_gradient(model: nn.Module, norms: Tensor) -> Tensor:
    """Gradient of a weighted sum of the norms, so that no sample can hide behind another."""
    weights = torch.linspace(0.5, 1.5, len(norms), dtype=norms.dtype)
    grads = torch.autograd.grad(
        (norms * weights).sum(),
        list(model.parameters()),
        materialize_grads=True,
        retain_graph=True,
    )
    return torch.cat([g.flatten() for g in grads])


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


class Counted:
    """A score function that remembers how many samples each call had."""

    def __init__(self, score: Score) -> None:
        self.score, self.calls = score, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.score(x)


# value


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_value_is_the_exact_gradient_norm(
    estimator: str, kind: str, activation: type[nn.Module]
) -> None:
    model, x = case(kind, 0, activation)
    # Even with a step far too large for the derivative, the value is exact.
    norms = gradient_penalty(score_of(model), x, estimator=estimator, step=0.5)
    assert norms.shape == (len(x),)
    torch.testing.assert_close(norms, exact_norms(model, x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_linear_score_by_hand(estimator: str) -> None:
    w = torch.tensor([3.0, 4.0], dtype=F64, requires_grad=True)
    x = points(3, 2)
    norms = gradient_penalty(lambda v: v @ w, x, estimator=estimator)
    assert norms.tolist() == pytest.approx([5.0] * 3, rel=1e-14)
    (slope,) = torch.autograd.grad(norms.sum(), w)
    assert slope.tolist() == pytest.approx([3 * 0.6, 3 * 0.8], rel=1e-8)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_quadratic_score_by_hand(estimator: str) -> None:
    """S = a‖x‖²/2: ‖∇S‖ = a‖x‖, with derivative ‖x‖ in a."""
    a = torch.tensor(1.5, dtype=F64, requires_grad=True)
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=F64)
    norms = gradient_penalty(lambda v: a * v.square().sum(1) / 2, x, estimator=estimator)
    assert norms.tolist() == pytest.approx([7.5, 3.0], rel=1e-14)
    for norm, expected in zip(norms, (5.0, 2.0), strict=True):
        (slope,) = torch.autograd.grad(norm, a, retain_graph=True)
        assert slope.item() == pytest.approx(expected, rel=1e-5)


# weight gradient


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_estimators_agree_on_relu_networks(kind: str, seed: int) -> None:
    model, x = case(kind, seed)
    grads = [
        weight_gradient(model, gradient_penalty(score_of(model), x, estimator=e))
        for e in ("finite-difference", "double-backward")
    ]
    assert relative(*grads) < 1e-3
    reference = weight_gradient(model, exact_norms(model, x))
    assert relative(grads[1], reference) < 1e-10


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_error_shrinks_with_the_step_on_smooth_networks(kind: str) -> None:
    model, x = case(kind, 1, nn.Tanh)
    exact = weight_gradient(model, gradient_penalty(score_of(model), x, estimator=ESTIMATORS[1]))
    steps = (1e-1, 1e-2, 1e-3, 1e-4)
    errors = [
        relative(weight_gradient(model, gradient_penalty(score_of(model), x, step=h)), exact)
        for h in steps
    ]
    assert errors[0] < 0.5
    for coarse, fine in itertools.pairwise(errors[1:]):
        assert 8 < coarse / fine < 12.5
    default = weight_gradient(model, gradient_penalty(score_of(model), x))
    assert relative(default, exact) < 1e-5


def test_a_finite_step_is_exact_inside_a_linear_region() -> None:
    model, x = mlp(2), points(seed=2)
    signs: list[Tensor] = []
    for layer in (model[1], model[3]):  # type: ignore[index]
        layer.register_forward_hook(lambda _m, _i, out: signs.append(out > 0))
    h = 1e-4

    def logit_gap(v: Tensor) -> Tensor:
        out: Tensor = model(v)
        return out[:, 0] - 2 * out[:, 1]

    norms = gradient_penalty(logit_gap, x, step=h)
    assert len(signs) == 4  # two passes of two layers
    assert all(torch.equal(a, b) for a, b in zip(signs[:2], signs[2:], strict=True))
    exact = weight_gradient(model, gradient_penalty(logit_gap, x, estimator="double-backward"))
    assert relative(weight_gradient(model, norms), exact) < 1e-10


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_float32_weight_gradient_is_close_to_float64(activation: type[nn.Module]) -> None:
    for seed in range(3):
        double, x = conv_net(seed, activation), pictures(24, seed)
        exact = weight_gradient(double, exact_norms(double, x))
        single = conv_net(seed, activation).float()
        norms = gradient_penalty(score_of(single), x.float())
        assert norms.dtype == torch.float32
        assert relative(weight_gradient(single, norms).double(), exact) < 0.03


@pytest.mark.parametrize("wanted", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_double_backward_passes_gradient_checks(wanted: Callable[..., bool]) -> None:
    model, x = tiny_smooth(), points(3, 3)
    names = [n for n, _ in model.named_parameters()]
    weights = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def penalty(inputs: Tensor, *values: Tensor) -> Tensor:
        def score(v: Tensor) -> Tensor:
            return energy(functional_call(model, dict(zip(names, values, strict=True)), (v,)))

        return gradient_penalty(score, inputs, estimator="double-backward")

    assert wanted(penalty, (x.requires_grad_(), *weights))


# zero gradients


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_network_has_no_penalty_and_no_weight_gradient(
    estimator: str, dtype: torch.dtype
) -> None:
    model = mlp().to(dtype)
    with torch.no_grad():
        model[4].weight.zero_()  # type: ignore[index]
    norms = gradient_penalty(score_of(model), points().to(dtype), estimator=estimator)
    assert norms.tolist() == [0.0] * 6
    assert weight_gradient(model, norms).tolist() == [0.0] * sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_with_dead_relus_leave_the_others_alone(estimator: str) -> None:
    model, x = mlp(3), points(seed=3)
    with torch.no_grad():
        model[0].weight.abs_()  # type: ignore[index]
    x = x.abs()
    x[::2] -= 100  # every unit of the first layer is off
    norms = gradient_penalty(score_of(model), x, estimator=estimator)
    assert norms[::2].tolist() == [0.0] * 3
    assert (norms[1::2] > 0).all()
    got = weight_gradient(model, norms)
    assert torch.isfinite(got).all()
    alone = exact_norms(model, x[1::2]) * torch.linspace(0.5, 1.5, 6, dtype=F64)[1::2]
    grads = torch.autograd.grad(alone.sum(), list(model.parameters()), materialize_grads=True)
    assert relative(got, torch.cat([g.flatten() for g in grads])) < 1e-5


def test_second_derivatives_are_finite_at_a_zero_gradient() -> None:
    w = torch.zeros(3, dtype=F64, requires_grad=True)
    norms = gradient_penalty(lambda v: v @ w, points(2, 3), estimator="double-backward")
    (first,) = torch.autograd.grad(norms.sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), w)
    assert first.tolist() == second.tolist() == [0.0] * 3


# given scores


@pytest.mark.parametrize(
    ("estimator", "calls"), [("finite-difference", [6]), ("double-backward", [])]
)
def test_given_scores_save_a_pass_and_change_nothing(estimator: str, calls: list[int]) -> None:
    model, x = conv_net(), pictures()
    expected = gradient_penalty(score_of(model), x, estimator=estimator)
    counted, x = Counted(score_of(model)), x.clone().requires_grad_()
    scores = counted(x)
    counted.calls.clear()
    norms = gradient_penalty(counted, x, scores=scores, estimator=estimator)
    assert counted.calls == calls
    torch.testing.assert_close(norms, expected, rtol=1e-12, atol=0.0)  # to rounding
    want = weight_gradient(model, expected)
    assert relative(weight_gradient(model, norms), want) < 1e-12


def test_given_scores_can_still_be_used_after_the_penalty() -> None:
    model, x = mlp(), points().requires_grad_()
    scores = score_of(model)(x)
    for estimator in ESTIMATORS:
        norms = gradient_penalty(score_of(model), x, scores=scores, estimator=estimator)
        together = weight_gradient(model, norms + scores)
        apart = weight_gradient(model, norms) + weight_gradient(model, score_of(model)(x))
        torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_is_left_behind(estimator: str) -> None:
    model, x = mlp(), points()
    before = x.clone()
    gradient_penalty(score_of(model), x, estimator=estimator)
    assert not x.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)
    assert all(p.grad is None for p in model.parameters())


# selection


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_selected_samples_alone_are_penalised(estimator: str) -> None:
    model, x = conv_net(), pictures()
    select = torch.tensor([True, False, False, True, True, False])
    whole = gradient_penalty(score_of(model), x, estimator=estimator)
    part = gradient_penalty(score_of(model), x, estimator=estimator, select=select)
    assert torch.equal(part, torch.where(select, whole, 0.0))
    want = weight_gradient(model, whole * select)
    assert relative(weight_gradient(model, part), want) < 1e-6
    assert want.norm() > 1e-3


def test_the_second_pass_sees_selected_samples_alone() -> None:
    model, x = mlp(), points().requires_grad_()
    counted = Counted(score_of(model))
    scores = counted(x)
    counted.calls.clear()
    select = torch.tensor([False, True, False, False, True, False])
    gradient_penalty(counted, x, scores=scores, select=select)
    none = torch.zeros(6, dtype=torch.bool)
    norms = gradient_penalty(counted, x, scores=scores, select=none)
    assert counted.calls == [2]
    assert norms.tolist() == [0.0] * 6
    assert torch.equal(
        gradient_penalty(counted, x, scores=scores, select=~none),
        gradient_penalty(counted, x, scores=scores),
    )
    loss = scores.sum() + norms.sum()  # a step with nothing to smooth still trains
    assert torch.isfinite(torch.autograd.grad(loss, list(model.parameters()))[0]).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_empty_batch_has_no_penalties(estimator: str) -> None:
    assert gradient_penalty(score_of(mlp()), points(0), estimator=estimator).shape == (0,)


def test_float32_and_float64_have_steps_of_their_own() -> None:
    """A step of 1e-6 drowns in float32; one of 1e-3 is needlessly coarse in float64."""
    model, x = case("conv", 0, nn.Tanh)
    exact = weight_gradient(model, exact_norms(model, x))
    default = relative(weight_gradient(model, gradient_penalty(score_of(model), x)), exact)
    coarse = gradient_penalty(score_of(model), x, step=1e-3)
    assert default < 0.05 * relative(weight_gradient(model, coarse), exact)
    single = conv_net(0, nn.Tanh).float()
    default = relative(
        weight_gradient(single, gradient_penalty(score_of(single), x.float())).double(), exact
    )
    fine = gradient_penalty(score_of(single), x.float(), step=1e-6)
    assert default < 0.1 * relative(weight_gradient(single, fine).double(), exact)


# one number of the batch


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_product_of_all_samples_by_hand(estimator: str) -> None:
    """F = a·x₁·x₂²: its gradient is a(x₂², 2x₁x₂), a row each."""
    a = torch.tensor(0.5, dtype=F64, requires_grad=True)
    x, weights = torch.tensor([[3.0], [2.0]], dtype=F64), torch.tensor([1.0, 4.0], dtype=F64)
    number = lambda v: a * v[0, 0] * v[1, 0] ** 2  # noqa: E731
    norms = gradient_penalty(number, x, estimator=estimator, weights=weights)
    assert norms.tolist() == pytest.approx([2.0, 6.0], rel=1e-14)
    (slope,) = torch.autograd.grad((weights * norms).sum(), a)
    assert slope.item() == pytest.approx(4 + 4 * 12, rel=1e-5)
    if estimator == "finite-difference":
        with pytest.raises(UsageError, match="expected weights beside a score of the whole batch"):
            gradient_penalty(number, x, estimator=estimator)


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "magic"},
            "estimator in finite-difference, double-backward, but got 'magic'",
        ),
        ({"step": 0.0}, "expected step > 0, but got 0.0"),
        ({"step": math.nan}, "expected step > 0, but got nan"),
        ({"scores": points()[:, 0]}, "inputs that require grad"),
        ({"scores": points()[:, 0], "estimator": ESTIMATORS[1]}, "inputs that require grad"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gradient_penalty(score_of(mlp()), points(), **options)
