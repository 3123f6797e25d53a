"""The processes that train or verify together: who does what, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from greg_cert.errors import GregCertError, RunError, UsageError

_T = TypeVar("_T")
_START = timedelta(minutes=10)
# A process waits for the slowest; one that has died is noticed by its connection, not by the clock.
_WAIT = timedelta(days=365)


class Processes:
    """This process, number `rank` of `size`; alone, everything here costs nothing.

    The `group` is of `torch.distributed`; the default group where none is given.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self._group = rank, size, group

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
        mine = values.detach().contiguous()
        self._guard(lambda: dist.all_gather(parts, mine, group=self._group))
        return torch.cat(parts)

    def collect(self, value: _T) -> list[_T]:
        """The values of all processes, by rank, once each of them has come here.

        Raises:
            RunError: where another process has died.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._guard(lambda: dist.all_gather_object(found, value, group=self._group))
        return found

    def agree(self, value: _T) -> _T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        said = [value]
        self._guard(lambda: dist.broadcast_object_list(said, src=0, group=self._group))
        return said[0]

    def once(self, action: Callable[[], _T]) -> _T:
        """Let the first process act; all of them have its result, or raise its error.

        Without this the others would wait for ever for one that has failed.
        """
        if self.size == 1:
            return action()
        result: Any = None
        failed: GregCertError | None = None
        if self.first:
            try:
                result = action()
            except GregCertError as error:
                failed = error
            except Exception as error:
                failed = RunError(f"the first process failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
        result, failed = self.agree((result, failed))
        if failed is not None:
            raise failed
        found: _T = result
        return found

    def check(self, failed: Exception | None) -> None:
        """Raise the error of any process in all of them.

        Raises:
            Exception: the process's own.
            RunError: where another one failed.
        """
        if any(self.collect(failed is not None)):
            raise failed or RunError("another process failed, and says why")

    def align(self, module: nn.Module) -> None:
        """Give all processes the first one's running statistics, as DDP would one step later."""
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if self.size == 1 or not buffers:
            return
        flat = torch.cat([b.flatten() for b in buffers])
        self._guard(lambda: dist.broadcast(flat, 0, group=self._group))
        for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            raise RunError(
                "another process stopped before its share was done, and says why; what is "
                "finished is kept: run the same command again to go on"
            ) from error


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes named by RANK and WORLD_SIZE in the environment; one without them.

    Raises:
        UsageError: for numbers that do not fit each other, or no MASTER_ADDR and MASTER_PORT.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise UsageError(f"expected 0 <= RANK < WORLD_SIZE = {size}, but got {rank}")
    if size == 1:
        yield Processes()
        return
    mine = not dist.is_initialized()
    if mine:
        missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise UsageError(
                f"expected {missing[0]} in the environment beside WORLD_SIZE = {size}, but got "
                "none; start the processes with torchrun"
            )
        try:
            dist.init_process_group("gloo", rank=rank, world_size=size, timeout=_START)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"cannot meet the other processes: {error}") from error
    try:
        yield Processes(rank, size, dist.new_group(backend="gloo", timeout=_WAIT))
    finally:
        if mine:
            dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"expected a number in {name}, but got {text!r}")
    return int(text)
