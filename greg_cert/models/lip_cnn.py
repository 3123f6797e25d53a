"""A plain convolutional network whose product of norms is a usable Lipschitz constant."""

from __future__ import annotations

from torch import nn

from greg_cert.errors import UsageError
from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body
from greg_cert.models.small import ACTIVATIONS

HALVED_TWICE = 4
"""Smallest side that leaves a pixel after two halvings that round down."""


def check_halved_twice(image_size: int) -> int:
    """Side of the feature maps after two halvings, or a refusal.

    Raises:
        UsageError: for images that are smaller than 4×4.
    """
    if image_size < HALVED_TWICE:
        raise UsageError(f"image_size: expected >= {HALVED_TWICE}, but got {image_size}")
    return image_size // 4


def lip_cnn_body(
    in_channels: int, image_size: int, width: int = 32, activation: str = "maxmin"
) -> Body:
    """Two 4×4 convolutions of stride 2 and one hidden linear layer, without BatchNorm.

    Few layers, as each multiplies the constant by its norm, and no statistics of a batch in it.

    Args:
        in_channels: C.
        image_size: height and width of the images, at least 4.
        width: planes of the first convolution, even for `maxmin`.
        activation: one of `ACTIVATIONS`.

    Returns:
        The body, its number of features 4·width, and its aliases.

    Raises:
        UsageError: for images that are too small.
    """
    side = check_halved_twice(image_size)
    act = ACTIVATIONS[activation]
    body = nn.Sequential(
        nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
        act(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        act(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, 4 * width),
        act(),
    )
    return Body(body, 4 * width, HEAD_ALIASES)
