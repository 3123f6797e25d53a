"""Penultimate features around four class centres, and a head that mostly tells the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.detectors.penultimate import Head

D, K = 12, 4


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


HEAD = Head(normal(0, K, D), normal(1, K))
CENTERS = normal(2, K, D).abs() * 2 + HEAD.weight.clamp(min=0) * 2
LABELS = torch.arange(160) % K
TRAIN = (CENTERS[LABELS] + 0.5 * normal(3, 160, D)).clamp(min=0) + 0.01 * normal(4, 160, D).abs()
TEST = (CENTERS[torch.arange(30) % K] + normal(5, 30, D)).abs()
