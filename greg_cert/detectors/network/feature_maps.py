"""The feature maps inside a network, read as they are made, and replaced where one asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from greg_cert.detectors.penultimate import Penultimate
from greg_cert.errors import UnsupportedModelError

Look = Callable[[int, Tensor], Tensor | None]
"""Number of a map and the map (B, C, H, W) itself to what takes its place, None for itself."""


class FeatureMaps:
    """The maps that the modules of a network give, in the order in which they are finished.

    A map is an output (B, C, H, W) of any module, H·W > 1, from the first layer that has weights
    on. One and the same tensor counts once: that of a block's last activation is also the block's.
    What functions compute between modules is no map. Maps are numbered from 0; that a number always
    means the same place rests on a network that makes the same calls for every image.

    Maps are shown one by one and not kept, as those of a deep network do not fit into memory
    together: take what is needed of each.
    """

    def __init__(self, network: Penultimate) -> None:
        self._network = network
        self._modules = [m for m in network.module.modules() if not isinstance(m, nn.Identity)]

    def run(self, x: Tensor, look: Look) -> Tensor:
        """Logits (B, K) of raw images (B, C, H, W), with `look` called on each map in turn."""
        number, weighted = 0, False
        last: tuple[Tensor | None, int] = (None, 0)

        def note(module: nn.Module, _: Any, out: Any) -> Tensor | None:
            nonlocal number, weighted, last
            weighted |= any(True for _ in module.parameters())
            if not (
                weighted and isinstance(out, Tensor) and out.ndim == 4 and out[0, 0].numel() > 1
            ):
                return None
            if out is last[0] and out._version == last[1]:  # in place is another map
                return None
            number += 1
            instead = look(number - 1, out)
            seen = out if instead is None else instead
            last = (seen, seen._version)
            return instead

        handles = [module.register_forward_hook(note) for module in self._modules]
        try:
            return self._network.logits(x)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def sizes(self, x: Tensor) -> list[tuple[int, int]]:
        """Height and width of each map of raw images (B, C, H, W)."""
        found: list[tuple[int, int]] = []
        self.run(x[:1], lambda _, m: found.append((m.shape[2], m.shape[3])))
        return found

    def stages(self, x: Tensor) -> list[int]:
        """Numbers of the last map of each resolution, in order: what a stage of blocks gives."""
        return sorted({size: number for number, size in enumerate(self.sizes(x))}.values())

    def lacking(self) -> UnsupportedModelError:
        """What to raise where there is no map."""
        return UnsupportedModelError(
            "expected a network whose modules give feature maps (B, C, H, W) of more than one "
            f"place, but got {type(self._network.module).__name__}, which has none"
        )
