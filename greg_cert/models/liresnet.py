"""Residual networks whose branches are linear: a block is no steeper than one operator I + W."""

from __future__ import annotations

from torch import Tensor, nn

from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body, check_halved_twice
from greg_cert.models.small import ACTIVATIONS

_AT_START = 0.1  # of the usual spread of a convolution's weights


class LinearResidual(nn.Module):
    """x + conv(x), a linear map I + W with ‖I + W‖ ≤ 1 + ‖W‖; W is small to begin with.

    Source: Hu et al., "Unlocking Deterministic Robustness Certification on ImageNet", NeurIPS
    2023, section 3.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(planes, planes, 3, padding=1)
        nn.init.orthogonal_(self.conv.weight, gain=_AT_START)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, planes, H, W) of maps of the same shape."""
        y: Tensor = x + self.conv(x)
        return y


def liresnet_body(
    in_channels: int, image_size: int, width: int = 16, depth: int = 2, activation: str = "maxmin"
) -> Body:
    """Stem, two stages of `depth` linear residual blocks, and a neck; without BatchNorm.

    The stem is a 4×4 convolution of stride 2; between the stages one of windows of 2×2 that do not
    overlap halves the resolution and doubles the planes; the neck is a linear layer.

    `width`, even for `maxmin`, is the number of planes of the first stage, `depth` that of the
    blocks of each, all with an activation behind them; D is 8·width.

    Raises:
        UsageError: for images that are too small.

    Source: Hu et al., "Unlocking Deterministic Robustness Certification on ImageNet", NeurIPS 2023.
    """
    side = check_halved_twice(image_size)
    act = ACTIVATIONS[activation]
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), act()]
    for _ in range(depth):
        layers += [LinearResidual(width), act()]
    layers += [nn.Conv2d(width, 2 * width, 2, stride=2), act()]
    for _ in range(depth):
        layers += [LinearResidual(2 * width), act()]
    layers += [nn.Flatten(), nn.Linear(2 * width * side**2, 8 * width), act()]
    return Body(nn.Sequential(*layers), 8 * width, HEAD_ALIASES)
