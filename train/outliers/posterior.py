"""Outliers near the decision boundary, drawn by Thompson sampling from a Bayesian linear model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.outliers.finite import check_finite

_CHUNK = 2**14


@dataclass(frozen=True, eq=False)
class LinearPosterior:
    """Normal posterior of w in t = w·φ + noise, given ID features (t < 0) and outliers (t > 0).

    With prior w ~ N(0, I) and noise N(0, 1), the posterior is N(m, P⁻¹) with

        P = I + Σᵢ φᵢ φᵢᵀ,    P m = Σᵢ tᵢ φᵢ,    φ = z / ‖z‖₂.

    Only the two sums are kept, so data may come in any order and be split. An instance never
    changes: `update` returns a new one.

    Source: Ming, Fan and Li, "POEM: Out-of-Distribution Detection with Posterior Sampling",
        ICML 2022, section 3. The authors' code multiplies the covariance by the prior's variance
        once more, and keeps a rolling buffer of images; to forget, begin again from `prior`.

    Attributes:
        gram: (D, D) float64 Σ φ φᵀ.
        moment: (D,) float64 Σ t φ.
    """

    gram: Tensor
    moment: Tensor

    @classmethod
    def prior(cls, dim: int, *, device: torch.device | str = "cpu") -> LinearPosterior:
        """The distribution N(0, I) of w in D = `dim` before any observation."""
        zeros = torch.zeros(dim, dim + 1, dtype=torch.float64, device=device)
        return cls(zeros[:, :-1], zeros[:, -1])

    def update(self, features: Tensor, targets: Tensor, *, check: bool = True) -> LinearPosterior:
        """The posterior after more observations, each one adding a matrix of rank 1.

        Args:
            features: (N, D), not necessarily normalised, on the posterior's device.
            targets: (N,) or a scalar: the logit confidence t for auxiliary outliers, −t for ID
                samples (POEM's own runs take t = log(p / (1 − p)) of a p near 1).
            check: whether to look for NaN and infinity, which makes the host wait for the device.

        Returns:
            A new posterior; this one stays.

        Raises:
            UsageError: for shapes that do not match, or values that are not finite.
        """
        if check:
            check_finite(features=features, targets=targets.reshape(-1))
        phi = _unit(features, len(self.moment))
        t = targets.detach().to(phi)
        if t.ndim != 0 and t.shape != phi.shape[:1]:
            raise UsageError(
                f"expected targets ({len(phi)},) or a scalar, but got {tuple(t.shape)}"
            )
        return LinearPosterior(
            self.gram + phi.T @ phi, self.moment + (t.unsqueeze(-1) * phi).sum(0)
        )

    def precision(self) -> Tensor:
        """Inverse covariance P of w, (D, D) float64."""
        return self.gram + torch.eye(len(self.gram)).to(self.gram)

    def mean(self) -> Tensor:
        """Posterior mean m of w, (D,) float64."""
        return self._solve(torch.linalg.cholesky_ex(self.precision())[0])

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One w ~ N(m, P⁻¹), (D,) float64: m + L⁻ᵀ ε with P = L Lᵀ and ε standard normal."""
        factor = torch.linalg.cholesky_ex(self.precision())[0]
        noise = torch.randn(
            len(factor), 1, dtype=torch.float64, device=factor.device, generator=generator
        )
        spread: Tensor = torch.linalg.solve_triangular(factor.T, noise, upper=True)
        return self._solve(factor) + spread.squeeze(1)

    def _solve(self, factor: Tensor) -> Tensor:
        return torch.cholesky_solve(self.moment.unsqueeze(1), factor).squeeze(1)


def boundary_scores(features: Tensor, weights: Tensor, *, check: bool = True) -> Tensor:
    """Closeness −|w·φ| of each candidate to the boundary w·φ = 0; at most 0, higher = closer.

    Args:
        features: (N, D), normalised here.
        weights: (D,) a draw of `LinearPosterior.sample`.
        check: whether to look for NaN and infinity, which makes the host wait for the device.

    Returns:
        (N,) float64.

    Raises:
        UsageError: for shapes that do not match, or features that are not finite.
    """
    if check:
        check_finite(features=features)
    return -(_unit(features, len(weights)) @ weights).abs()


def posterior_sample(
    features: Tensor,
    posterior: LinearPosterior,
    count: int,
    generator: torch.Generator | None = None,
    *,
    check: bool = True,
) -> Tensor:
    """Indices of the `count` candidates nearest the boundary of one w drawn from the posterior.

    Args:
        features: (N, D) penultimate features of the candidates.
        posterior: of the outlier logit given what was seen so far.
        count: how many to take, with 1 ≤ count ≤ N.
        generator: source of randomness, on the posterior's device.
        check: whether to look for NaN and infinity, which makes the host wait for the device.

    Returns:
        (count,) indices, the nearest first; ties go to the lowest index.

    Raises:
        UsageError: for a count out of range, shapes that do not match, or features that are not
            finite.

    Source: Ming, Fan and Li, ICML 2022, algorithm 1.
    """
    if not 1 <= count <= len(features):
        raise UsageError(
            f"expected 1 <= count <= {len(features)} (the candidates), but got {count}"
        )
    weights = posterior.sample(generator)
    parts = features.split(_CHUNK)  # which float64 and normalisation copy
    scores = torch.cat([boundary_scores(part, weights, check=check) for part in parts])
    return scores.argsort(descending=True, stable=True)[:count]


def _unit(features: Tensor, dim: int) -> Tensor:
    """Features of length 1 (N, D) in float64; a zero stays zero."""
    if features.ndim != 2 or features.shape[1] != dim:
        raise UsageError(f"expected features (N, {dim}), but got {tuple(features.shape)}")
    return torch.nn.functional.normalize(features.detach().double(), dim=1)
