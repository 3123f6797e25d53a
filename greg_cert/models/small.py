"""Small ReLU networks that certify in seconds."""

from __future__ import annotations

from torch import nn


def mlp_body(in_channels: int, image_size: int, width: int = 128) -> tuple[nn.Module, int]:
    """Two hidden layers of `width` ReLU units on the flattened image."""
    body = nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
    )
    return body, width


def cnn_small_body(in_channels: int, image_size: int, width: int = 16) -> tuple[nn.Module, int]:
    """Two strided 3×3 convolutions and one hidden linear layer, without BatchNorm."""
    side = (image_size + 3) // 4  # two convolutions of stride 2 and padding 1, each rounding up
    hidden = 4 * width
    body = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, hidden),
        nn.ReLU(),
    )
    return body, hidden
