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
        scale = 1.0 / torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) * scale
        del self.weight, self.bias
        self.register_buffer("weight", scale.float().reshape(channels, 1, 1, 1))
        self.register_buffer("bias", shift.float())
