"""What every model of the registry has: normalisation, features, and one linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.models.normalize import Normalize

_HALVED_TWICE = 4  # smallest side that leaves a pixel after two halvings that round down


class Body(NamedTuple):
    """What the arguments `body`, `num_features` and `aliases` of a `Classifier` are made of."""

    module: nn.Module
    num_features: int
    aliases: Mapping[str, str]


class Classifier(nn.Module):
    """Raw images in [0, 1] (B, C, H, W) to logits (B, K), by way of penultimate features (B, D).

    Args:
        body: network from normalised images to features (B, D).
        num_features: D.
        num_classes: K.
        mean: per-channel mean of the raw pixels.
        std: per-channel standard deviation of the raw pixels.
        aliases: what other code bases call the modules, as in `greg_cert.models.aliases`.
    """

    def __init__(
        self,
        body: nn.Module,
        num_features: int,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.body = body
        self.head = nn.Linear(num_features, num_classes)
        self.aliases = dict(aliases or {})

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D) of raw images (B, C, H, W)."""
        out: Tensor = self.body(self.normalize(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of raw images (B, C, H, W)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def check_halved_twice(image_size: int) -> int:
    """Side of the feature maps after two halvings that round down.

    Raises:
        UsageError: for images that are smaller than 4×4.
    """
    if image_size < _HALVED_TWICE:
        raise UsageError(f"image_size: expected >= {_HALVED_TWICE}, but got {image_size}")
    return image_size // 4
