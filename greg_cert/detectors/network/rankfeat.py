"""RankFeat: the energy once the largest direction of a feature map is gone, by pytorch-ood."""

from __future__ import annotations

import torch
from pytorch_ood.detector import EnergyBased, RankFeat
from torch import Tensor

from greg_cert.detectors.fitted import Fitted, Score
from greg_cert.detectors.network.feature_maps import FeatureMaps
from greg_cert.detectors.penultimate import Penultimate


def rankfeat(network: Penultimate, *, temperature: float) -> Fitted:
    """−T·logsumexp(f̄/T), with f̄ the mean of logits whose map lost its largest singular direction.

    A map X (C, HW) of the last resolution becomes X − σ₁·u₁·v₁ᵀ, and the rest of the network makes
    logits of it; another run does so at the resolution before it, and f̄ is the mean of both, as the
    authors' code fuses blocks 4 and 3. A network of one resolution has one of them.

    Source: Song et al., NeurIPS 2022, section 3.1; the fusion is that of the authors' code.

    Raises:
        UnsupportedModelError: when scoring, for a network without maps.
    """
    maps = FeatureMaps(network)
    # As pytorch-ood's backbone, head and detector are the network's or ours, its removal is left.
    remove: Score = RankFeat(None, head=_same, detector=_same).predict_feature_maps

    def without(x: Tensor, stage: int) -> Tensor:
        def look(number: int, found: Tensor) -> Tensor | None:
            return remove(found.contiguous()) if number == stage else None

        return maps.run(x, look)

    @torch.no_grad()
    def score(x: Tensor) -> Tensor:
        stages = maps.stages(x)[-2:]
        if not stages:
            raise maps.lacking()
        logits = torch.stack([without(x, stage) for stage in stages])
        found: Tensor = EnergyBased.score(logits.mean(0), t=temperature)
        return found.cpu()

    return Fitted(score)


def _same(value: Tensor) -> Tensor:
    return value
