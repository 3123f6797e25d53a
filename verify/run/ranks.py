"""The processes that verify together, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from greg_cert.errors import GregCertError, RunError, UsageError

_T = TypeVar("_T")
_START = timedelta(minutes=10)
# A process waits for the slowest; one that has died is noticed by its connection, not by the clock.
_WAIT = timedelta(days=365)


class Ranks:
    """This process among all; alone, everything here costs nothing.

    Attributes:
        rank: which one this is; 0 writes the tables.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    def once(self, action: Callable[[], _T]) -> _T:
        """Let the first process act; all of them have its result, or its error."""
        if self.size == 1:
            return action()
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = action()
            except GregCertError as error:
                said[1] = error
            except Exception as error:
                said[1] = RunError(f"the first process failed: {type(error).__name__}: {error}")
                said[1].__cause__ = error
        self._guard(lambda: dist.broadcast_object_list(said, src=0, group=self._group))
        if said[1] is not None:
            raise said[1]
        result: _T = said[0]
        return result

    def gather(self, value: _T) -> list[_T]:
        """The values of all processes, by rank, once each of them has come here.

        Raises:
            RunError: where another process has died.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._guard(lambda: dist.all_gather_object(found, value, group=self._group))
        return found

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            raise RunError(
                "another process stopped before its share was done, and says why; what is "
                "finished is kept: run the same command again to go on"
            ) from error


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The processes named by RANK and WORLD_SIZE in the environment; one without them.

    Raises:
        UsageError: for numbers that do not fit each other, or no MASTER_ADDR and MASTER_PORT.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise UsageError(f"expected 0 <= RANK < WORLD_SIZE = {size}, but got {rank}")
    if size == 1:
        yield Ranks()
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
            line = " ".join(str(error).split())
            raise RunError(f"cannot meet the other processes: {line}") from error
    try:
        yield Ranks(rank, size, dist.new_group(backend="gloo", timeout=_WAIT))
    finally:
        if mine:
            dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"expected a number in {name}, but got {text!r}")
    return int(text)
