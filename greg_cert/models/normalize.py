"""Input normalisation that bound propagation handles soundly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from greg_cert.errors import UsageError


class Normalize(nn.Conv2d):
    """Per-channel (x − mean)/std, written as a frozen depthwise 1×1 convolution.

    Subtraction and division as the first operations make auto-LiRPA's ℓ2 bounds silently unsound;
    a convolution does not. Weight and bias are buffers: they are saved with the
    model and never trained.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        channels = len(mean)
        if channels == 0 or len(std) != channels:
            raise UsageError(f"expected one mean and one std a channel, but got {mean} and {std}")
        if not all(s > 0 for s in std):
            raise UsageError(f"expected std > 0 in every channel, but got {tuple(std)}")
        super().__init__(channels, channels, kernel_size=1, groups=channels)
        # Python's floats: torch's division imports its compiler where tensors are on `meta`.
        scale = [1.0 / float(s) for s in std]
        shift = [-float(m) * s for m, s in zip(mean, scale, strict=True)]
        del self.weight, self.bias
        weight = torch.tensor(scale, dtype=torch.float64).float()
        self.register_buffer("weight", weight.reshape(channels, 1, 1, 1))
        self.register_buffer("bias", torch.tensor(shift, dtype=torch.float64).float())
