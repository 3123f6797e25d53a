"""Running a model over image sets."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from greg_cert.data import ImageSet

_BATCH = 512


@torch.no_grad()
def logits_of(
    model: nn.Module,
    images: ImageSet,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Logits (N, K) of a whole set, by a copy of the model in `dtype`, on the CPU.

    float64 by default, so that scores, thresholds and certificates are of one function.
    """
    device = device or next(model.parameters()).device
    twin = copy.deepcopy(model).to(device, dtype).eval()
    parts = [
        twin(images.pixels(indices).to(device, dtype)).cpu()
        for indices in torch.arange(len(images)).split(_BATCH)
    ]
    return torch.cat(parts)
