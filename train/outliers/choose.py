"""Which auxiliary candidates a stage takes, by their features and scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greg_cert.stages import StageConfig
from greg_cert.train.outliers.posterior import LinearPosterior, posterior_sample
from greg_cert.train.outliers.sampling import (
    dos_sample,
    greedy_sample,
    two_ended_sample,
    without_repeats,
)

# Log-odds of the regression's targets: probability 0.99 of being what they are.
_CONFIDENCE = torch.tensor(4.595)


def choose(
    stage: StageConfig,
    features: Tensor,
    scores: Tensor,
    wanted: int,
    *,
    id_features: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Places of the candidates for L_S and for L_∇; one tensor twice where both are the same.

    The candidates have penultimate features (N, D) and OOD scores (N,), of which `wanted` are taken
    at each end; `posterior` needs the features (M, D) of ID samples too. The generator is on the
    features' device.
    """
    if stage.ranks is not None:
        among = scores.argsort(stable=True)[slice(*stage.ranks)]
        features, scores = features[among], scores[among]
    clusters = stage.clusters or wanted
    options: dict[str, Any] = {"generator": generator, "check": False}
    options["per_cluster"] = max(1, wanted // clusters)
    high = None
    if stage.strategy == "two_ended":
        low, high = two_ended_sample(features, scores, clusters, **options)
    elif stage.strategy == "dos":
        low = dos_sample(features, scores, clusters, **options)
    elif stage.strategy == "greedy":
        low = greedy_sample(scores, wanted)
    else:
        assert id_features is not None
        posterior = posterior_between(id_features, [features], check=False)
        low = posterior_sample(features, posterior, wanted, generator, check=False)
    if stage.singletons == "random":
        filled = [_filled(end, wanted) for end in (low, high) if end is not None]
        distinct = without_repeats(torch.cat(filled), len(scores), generator).split(wanted)
        low, high = distinct[0], distinct[1] if high is not None else None
    if stage.share_ends and high is not None:
        low, high = torch.cat([low, high]), None
    if stage.ranks is not None:
        low, high = among[low], None if high is None else among[high]
    return low, low if high is None else high


def _filled(end: Tensor, wanted: int) -> Tensor:
    """The places of an end, the first of them again until they are so many as wanted."""
    return torch.cat([end, end[:1].expand(wanted - len(end))])


def posterior_between(
    known: Tensor, outliers: Iterable[Tensor], *, check: bool = True
) -> LinearPosterior:
    """The posterior of the linear model that tells outliers from ID samples by their features.

    Those of ID samples are (M, D), and those of outliers come in parts (n, D) on the same device;
    `check` is that of `LinearPosterior.update`.
    """
    posterior = LinearPosterior.prior(known.shape[1], device=known.device)
    posterior = posterior.update(known, -_CONFIDENCE, check=check)
    for part in outliers:
        posterior = posterior.update(part, _CONFIDENCE, check=check)
    return posterior


@dataclass(frozen=True)
class Picks:
    """Indices of the auxiliary images chosen for all steps of an epoch, in the order of use."""

    low: Tensor  # (n,) for L_S
    high: Tensor  # (m,) for L_∇

    def step(self, step: int, wanted: int) -> tuple[Tensor, Tensor]:
        """The indices of one step, `wanted` of each; from the beginning again where they end."""
        places = torch.arange(step * wanted, (step + 1) * wanted)
        return self.low[places % len(self.low)], self.high[places % len(self.high)]
