from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clusters import rng
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.outliers.posterior import LinearPosterior, boundary_scores, posterior_sample


def observations(n: int = 40, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of any length, and targets of ±4.6."""
    features = torch.randn(n, dim, generator=rng(seed)).double() * 3
    return features, torch.where(torch.rand(n, generator=rng(seed + 1)) < 0.5, 4.6, -4.6).double()


def fitted(n: int = 40, dim: int = 5) -> LinearPosterior:
    return LinearPosterior.prior(dim).update(*observations(n, dim))


def test_one_observation_by_hand() -> None:
    """φ = (0.6, 0.8), t = 2: precision I + φφᵀ, mean 2φ / 2."""
    got = LinearPosterior.prior(2).update(torch.tensor([[3.0, 4.0]]), torch.tensor(2))
    phi = torch.tensor([0.6, 0.8]).double()
    torch.testing.assert_close(got.precision(), torch.eye(2).double() + torch.outer(phi, phi))
    torch.testing.assert_close(got.mean(), phi)


def test_predictions_are_those_of_a_gaussian_process_with_a_linear_kernel() -> None:
    """The same model in its dual form, by scikit-learn."""
    features, targets = observations()
    phi = F.normalize(features, dim=1).numpy()
    process = GaussianProcessRegressor(DotProduct(0.0, "fixed"), alpha=1.0, optimizer=None)
    process.fit(phi, targets.numpy())
    at = F.normalize(torch.randn(20, 5, generator=rng(9)).double(), dim=1)
    mean, std = process.predict(at.numpy(), return_std=True)
    got = fitted()
    np.testing.assert_allclose((at @ got.mean()).numpy(), mean, rtol=1e-9)
    variance = (at @ torch.linalg.inv(got.precision()) * at).sum(1)
    np.testing.assert_allclose(variance.numpy(), std**2, rtol=1e-7)


def test_moments_agree_with_numerical_integration_in_a_plane() -> None:
    features, targets = observations(6, 2)
    phi = F.normalize(features, dim=1).numpy()
    grid = np.linspace(-14, 14, 401)
    plane = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)  # (401, 401, 2)
    density = stats.norm.pdf(plane, scale=1.0).prod(-1)
    for one, t in zip(phi, targets.numpy(), strict=True):
        density *= stats.norm.pdf(t, plane @ one, 1.0)

    def moment(power_x: int, power_y: int) -> float:
        values = density * plane[..., 0] ** power_x * plane[..., 1] ** power_y
        return float(integrate.simpson(integrate.simpson(values, x=grid), x=grid))

    total, x, y = moment(0, 0), moment(1, 0), moment(0, 1)
    got = LinearPosterior.prior(2).update(features, targets)
    np.testing.assert_allclose(got.mean().numpy(), [x / total, y / total], rtol=1e-8)
    covariance = torch.linalg.inv(got.precision())
    xy = moment(1, 1) / total - x * y / total**2
    xx = moment(2, 0) / total - (x / total) ** 2
    np.testing.assert_allclose(float(covariance[0, 1]), xy, rtol=1e-7)
    np.testing.assert_allclose(float(covariance[0, 0]), xx, rtol=1e-7)


def test_draws_have_the_moments_of_the_posterior() -> None:
    posterior, generator = fitted(), rng(3)
    n = 4000
    draws = torch.stack([posterior.sample(generator) for _ in range(n)])
    covariance = torch.linalg.inv(posterior.precision())
    # Whitened, they are standard normal: each test statistic has a known spread.
    white = (draws - posterior.mean()) @ torch.linalg.cholesky(posterior.precision())
    assert (white.mean(0).abs() < 5 / math.sqrt(n)).all()
    second = white.T @ white / n - torch.eye(5).double()
    assert (second.abs() < 5 * math.sqrt(2 / n)).all()
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 1e-3
    assert covariance.diagonal().std() > 0


def test_parts_may_come_in_any_order() -> None:
    features, targets = observations(60, 4)
    prior = LinearPosterior.prior(4)
    whole = prior.update(features, targets)
    one_by_one = prior
    for i in torch.randperm(60, generator=rng()).tolist():
        one_by_one = one_by_one.update(features[i : i + 1], targets[i : i + 1])
    torch.testing.assert_close(one_by_one.precision(), whole.precision())
    torch.testing.assert_close(one_by_one.mean(), whole.mean())
    assert not prior.gram.any()


def test_lengths_and_precision_of_features_do_not_matter() -> None:
    features, targets = observations()
    scale = 2.0 ** torch.randint(-9, 9, (40, 1), generator=rng(2))
    got = LinearPosterior.prior(5).update((features * scale).requires_grad_(), targets)
    expected = LinearPosterior.prior(5).update(features, targets)
    torch.testing.assert_close(got.mean(), expected.mean())
    assert not got.gram.requires_grad
    half = LinearPosterior.prior(5).update(features.half(), targets.half())
    torch.testing.assert_close(half.mean(), expected.mean(), rtol=0.02, atol=0.01)
    zeros = LinearPosterior.prior(5).update(torch.zeros(3, 5), torch.tensor(4.6))
    assert torch.equal(zeros.mean(), torch.zeros(5).double())


def test_the_nearest_to_the_boundary_are_taken() -> None:
    posterior, candidates = fitted(400), torch.randn(100, 5, generator=rng(7))
    weights = posterior.sample(rng(5))
    distance = (F.normalize(candidates.double(), dim=1) @ weights).abs()
    got = posterior_sample(candidates, posterior, 12, rng(5))
    assert got.tolist() == distance.argsort()[:12].tolist()
    torch.testing.assert_close(boundary_scores(candidates, weights), -distance)
    assert (boundary_scores(candidates, weights) <= 0).all()
    assert posterior_sample(candidates, posterior, 12, rng(6)).tolist() != got.tolist()
    same = candidates[:1].repeat(6, 1)
    assert posterior_sample(same, posterior, 3, rng(5)).tolist() == [0, 1, 2]


def test_exploration_fades_as_evidence_grows() -> None:
    candidates = torch.randn(300, 5, generator=rng(7))

    def overlap(posterior: LinearPosterior) -> int:
        one, two = (
            set(posterior_sample(candidates, posterior, 30, rng(s)).tolist()) for s in (1, 2)
        )
        return len(one & two)

    assert overlap(fitted(10)) < overlap(fitted(20000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitted().update(torch.zeros(3, 4), torch.zeros(3)), r"\(N, 5\), but got \(3, 4\)"),
        (lambda: fitted().update(torch.zeros(3, 5), torch.zeros(2)), r"\(3,\) or a scalar"),
        (lambda: posterior_sample(torch.zeros(3, 5), fitted(), 4), "1 <= count <= 3 .*but got 4"),
        (lambda: boundary_scores(torch.zeros(3, 5), torch.zeros(4)), r"\(N, 4\)"),
    ],
)
def test_values_are_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
