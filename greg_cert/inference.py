"""Running a model over image sets."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor, nn

from greg_cert.data import Images, ImageSet, prefetch

_PIXELS = 2**21  # of a batch: 512 images of 64×64


@torch.no_grad()
def logits_of(
    model: nn.Module,
    images: Images,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Logits (N, K) of a whole set, by a copy of the model in `dtype`, on the CPU.

    float64 by default, so that scores, thresholds and certificates are of one function.
    """
    device = device or next(model.parameters()).device
    twin = copy.deepcopy(model).to(device, dtype).eval()
    batch = max(1, min(512, _PIXELS // (images.image_shape[1] * images.image_shape[2])))
    indices = torch.arange(len(images)).split(batch)
    if isinstance(images, ImageSet):
        parts = [twin(images.pixels(i).to(device, dtype)).cpu() for i in indices]
    else:  # decoding goes on meanwhile
        with contextlib.closing(prefetch(indices, images.pixels)) as ready:
            parts = [twin(pixels.to(device, dtype)).cpu() for _, pixels in ready]
    return torch.cat(parts)
