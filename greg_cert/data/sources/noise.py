"""Noise images, in the 256 grey levels that real images have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from greg_cert.data.sources.base import DrawnSource

if TYPE_CHECKING:
    from torch import Tensor

_MEAN, _STD = 0.5, 0.25


class UniformSource(DrawnSource):
    """Noise: every channel of every pixel uniform over the 256 grey levels."""

    source: Literal["uniform"] = "uniform"

    def draw(self, shape: tuple[int, int, int, int], *, field: str) -> Tensor:
        """See `DrawnSource`."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


class GaussianSource(DrawnSource):
    """Noise: normal with mean 0.5 and deviation 0.25, clipped to [0, 1], in 256 grey levels."""

    source: Literal["gaussian"] = "gaussian"

    def draw(self, shape: tuple[int, int, int, int], *, field: str) -> Tensor:
        """See `DrawnSource`."""
        import torch

        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return (255 * (_MEAN + _STD * noise)).round().clamp(0, 255).to(torch.uint8)
