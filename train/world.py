"""The processes that train together: who does what, and how they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from greg_cert.errors import GregCertError, RunError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_T = TypeVar("_T")


class World:
    """All processes of a run, through Lightning Fabric; alone, everything here costs nothing."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.rank: int = fabric.global_rank
        self.size: int = fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` things, which `size` divides."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, values: Tensor) -> Tensor:
        """The values (n, ...) of all processes, (size·n, ...), in the order of their shares."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        torch.distributed.all_gather(parts, values.detach().contiguous())
        return torch.cat(parts)

    def sum(self, value: float) -> float:
        """The sum over all processes, in float64."""
        mine = torch.tensor([value], dtype=torch.float64, device=self._fabric.device)
        return float(self.gather(mine).sum())

    def smallest(self, value: int) -> int:
        """The smallest of all processes' values."""
        if self.size == 1:
            return value
        return int(self.gather(torch.tensor([value], device=self._fabric.device)).min())

    def align(self, model: nn.Module) -> None:
        """Give all processes the first one's running statistics, as DDP would one step later."""
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        if self.size == 1 or not buffers:
            return
        flat = torch.cat([b.flatten() for b in buffers])
        torch.distributed.broadcast(flat, 0)
        for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))

    def check(self, failed: Exception | None) -> None:
        """Raise the error of any process in all of them.

        Raises:
            Exception: the process's own.
            RunError: where another one failed.
        """
        if failed is not None and self.size == 1:
            raise failed
        if self.smallest(0 if failed is not None else 1) == 0:
            raise failed or RunError("another process failed, and says why")

    def agree(self, value: _T) -> _T:
        """The first process's value, in all of them."""
        return value if self.size == 1 else self._fabric.broadcast(value)

    def once(self, action: Callable[[], _T]) -> _T:
        """Let the first process act, and all have the result, or raise the error.

        Without this the others would wait for ever for one that has failed.
        """
        if self.size == 1:
            return action()
        result: _T | None = None
        failed: GregCertError | None = None
        if self.first:
            try:
                result = action()
            except GregCertError as error:
                failed = error
            except Exception as error:
                failed = RunError(f"the first process failed with {type(error).__name__}: {error}")
                failed.__cause__ = error
        result, failed = self._fabric.broadcast((result, failed))
        if failed is not None:
            raise failed
        return result  # type: ignore[return-value]
