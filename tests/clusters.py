"""Points to cluster, and a guard against waiting for the device, for several test files."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 8, size: int = 12, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around `count` orthogonal directions in mixed order, and the blob of each."""
    generator = rng(seed)
    blob = torch.arange(count).repeat_interleave(size)
    blob = blob[torch.randperm(len(blob), generator=generator)]
    noise = 0.02 * torch.randn(len(blob), dim, generator=generator)
    return torch.eye(dim)[blob] + noise, blob


def unit_features(n: int = 384, dim: int = 128, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=rng(seed)), dim=1)


class NoHostSync(TorchDispatchMode):
    """Fails on whatever would make the host wait for a CUDA device."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "bincount")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.names, name
        if name.startswith("index"):
            for i in args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ():
                assert i is None or i.dtype not in (torch.bool, torch.uint8), f"{name} by a mask"
        return func(*args, **(kwargs or {}))
