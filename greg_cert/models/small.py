"""Small networks that certify in seconds, of ReLU or MaxMin."""

from __future__ import annotations

from torch import nn

from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body, check_halved_twice
from greg_cert.models.maxmin import MaxMin

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "maxmin": MaxMin}
"""By the names of `greg_cert.models.names.ACTIVATION_NAMES`."""


def mlp_body(in_channels: int, image_size: int, width: int = 128, activation: str = "relu") -> Body:
    """Two hidden layers of `width` units on the flattened image; D is `width`.

    Source: Rumelhart et al., "Learning representations by back-propagating errors", Nature 1986.
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

    Images may be of any size. `width` is the number of planes of the first convolution, and D is
    4·width.

    Source: design, but not sizes, of Wong and Kolter, "Provable Defenses against Adversarial
    Examples via the Convex Outer Adversarial Polytope", ICML 2018.
    """
    side = (image_size + 3) // 4  # two convolutions of stride 2 and padding 1, each rounding up
    return _two_convolutions(in_channels, 3, side, width, activation)


def lip_cnn_body(
    in_channels: int, image_size: int, width: int = 32, activation: str = "maxmin"
) -> Body:
    """Two strided 4×4 convolutions and one hidden linear layer, for a small Lipschitz constant.

    Few layers, as each multiplies the constant by its norm, and no statistics of a batch in it.
    `width`, even for `maxmin`, is the number of planes of the first convolution, and D is 4·width.

    Raises:
        UsageError: for images that are smaller than 4×4.

    Source: as `cnn_small_body`; the activation is that of Anil et al., "Sorting out Lipschitz
    function approximation", ICML 2019.
    """
    return _two_convolutions(in_channels, 4, check_halved_twice(image_size), width, activation)


def _two_convolutions(
    in_channels: int, kernel: int, side: int, width: int, activation: str
) -> Body:
    act = ACTIVATIONS[activation]
    body = nn.Sequential(
        nn.Conv2d(in_channels, width, kernel, stride=2, padding=1),
        act(),
        nn.Conv2d(width, 2 * width, kernel, stride=2, padding=1),
        act(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, 4 * width),
        act(),
    )
    return Body(body, 4 * width, HEAD_ALIASES)
