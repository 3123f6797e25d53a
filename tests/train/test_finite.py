"""Features and scores that are not finite, or too large to square, wherever outliers are chosen.

The extremes must not reach faiss, which ends the process on NaN.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clusters import rng, unit_features

from greg_cert.errors import UsageError
from greg_cert.train.outliers.finite import unit_rows
from greg_cert.train.outliers.kmeans import kmeans
from greg_cert.train.outliers.posterior import LinearPosterior, boundary_scores, posterior_sample
from greg_cert.train.outliers.sampling import dos_sample, greedy_sample, two_ended_sample

BACKENDS = ("auto", "torch", "faiss")
BAD = [
    (torch.nan, torch.float32, "nan"),
    (torch.inf, torch.float32, "inf"),
    (-torch.inf, torch.float16, "-inf"),
    (1e300, torch.float64, "1e+300"),  # infinite in float32
]


def marred(value: float, dtype: torch.dtype, shape: tuple[int, ...] = (40, 6)) -> torch.Tensor:
    tensor = torch.randn(*shape, generator=rng()).to(dtype)
    tensor[(7, *(2 for _ in shape[1:]))] = value
    return tensor


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("value", "dtype", "shown"), BAD)
def test_the_value_is_named(backend: str, value: float, dtype: torch.dtype, shown: str) -> None:
    bad, where = marred(value, dtype), f"but got {shown} in row 7 of 40"
    with pytest.raises(UsageError, match=r"^points: expected finite values") as error:
        kmeans(bad, 4, backend=backend)
    assert str(error.value).endswith(where)
    features, scores = torch.randn(40, 6, generator=rng()), torch.randn(40, generator=rng())
    bad_scores = marred(value, dtype, (40,))
    calls: list[tuple[str, Any]] = [
        ("features", lambda: two_ended_sample(bad, scores, 4, backend=backend)),
        ("scores", lambda: two_ended_sample(features, bad_scores, 4, backend=backend)),
        ("features", lambda: dos_sample(bad, scores, 4, backend=backend)),
        ("scores", lambda: greedy_sample(bad_scores, 3)),
    ]
    for name, call in calls:
        with pytest.raises(UsageError, match=f"^{name}: ") as error:
            call()
        assert str(error.value).endswith(where)


def test_faiss_is_never_given_such_points() -> None:
    """Not even where the host is not to wait for the device."""
    with pytest.raises(UsageError, match=r"points: .* nan in row 7"):
        kmeans(marred(torch.nan, torch.float32), 4, backend="faiss", check=False)
    for n in (0, 5):
        with pytest.raises(UsageError, match=f"floating points|n_clusters <= {n}"):
            kmeans(torch.zeros(n, 0 if n else 3), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 2.0**120])
def test_units_do_not_matter_to_any_engine(backend: str, scale: float) -> None:
    points = unit_features(100, 8)
    centres, assigned = kmeans(points, 10, backend=backend, generator=rng())
    got, named = kmeans(points * scale, 10, backend=backend, generator=rng())
    assert (named == assigned).float().mean() > 0.9  # a tie may fall the other way
    assert got.isfinite().all()
    if torch.equal(named, assigned):
        torch.testing.assert_close(got / scale, centres, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e20, 3e38])
def test_long_and_short_features_keep_their_direction(scale: float) -> None:
    """Squared they overflow or vanish: every row would become zero, and all of them one cluster."""
    features = unit_features(60, 5)
    torch.testing.assert_close(unit_rows(features * scale), features, rtol=1e-5, atol=1e-6)
    assert torch.equal(unit_rows(torch.zeros(2, 5)), torch.zeros(2, 5))
    scores = torch.randn(60, generator=rng(1))
    expected = two_ended_sample(features, scores, 6, generator=rng())
    for got, want in zip(
        two_ended_sample(features * scale, scores, 6, generator=rng()), expected, strict=True
    ):
        assert len(set(got.tolist()) & set(want.tolist())) >= 4  # more than one cluster gives


def test_usual_features_are_normalised_to_the_very_bit() -> None:
    features = 3 * torch.randn(200, 32, generator=rng())
    assert torch.equal(unit_rows(features), torch.nn.functional.normalize(features, dim=1))


@pytest.mark.parametrize(("value", "dtype", "shown"), BAD[:2])
def test_the_posterior_learns_from_finite_values_alone(
    value: float, dtype: torch.dtype, shown: str
) -> None:
    prior, bad = LinearPosterior.prior(6), marred(value, dtype)
    calls: list[Any] = [
        lambda: prior.update(bad, torch.tensor(1.0)),
        lambda: boundary_scores(bad, torch.zeros(6, dtype=torch.float64)),
        lambda: posterior_sample(bad, prior, 3, rng()),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=f"^features: .*{shown} in row 7"):
            call()
    with pytest.raises(UsageError, match=r"^targets: "):
        prior.update(torch.zeros(40, 6), marred(value, dtype, (40,)))
