"""Small networks that certify in seconds, of ReLU or MaxMin."""

from __future__ import annotations

from torch import nn

from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body
from greg_cert.models.maxmin import MaxMin

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "maxmin": MaxMin}
"""By the names of `greg_cert.models.names.ACTIVATION_NAMES`."""


def mlp_body(in_channels: int, image_size: int, width: int = 128, activation: str = "relu") -> Body:
    """Two hidden layers of `width` units on the flattened image.

    Args:
        in_channels: C.
        image_size: height and width of the images.
        width: units of each hidden layer.
        activation: one of `ACTIVATIONS`.

    Returns:
        The body, its number of features, and its aliases.
    """
    act = ACTIVATIONS[activation]
    body = nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, width),
        act(),
        nn.Linear(width, width),
        act(),
    )
    return Body(body, width, HEAD_ALIASES)


def cnn_small_body(
    in_channels: int, image_size: int, width: int = 16, activation: str = "relu"
) -> Body:
    """Two strided 3×3 convolutions and one hidden linear layer, without BatchNorm.

    Args:
        in_channels: C.
        image_size: height and width of the images.
        width: planes of the first convolution.
        activation: one of `ACTIVATIONS`.

    Returns:
        The body, its number of features, and its aliases.
    """
    side = (image_size + 3) // 4  # two convolutions of stride 2 and padding 1, each rounding up
    hidden = 4 * width
    act = ACTIVATIONS[activation]
    body = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
        act(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        act(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, hidden),
        act(),
    )
    return Body(body, hidden, HEAD_ALIASES)
