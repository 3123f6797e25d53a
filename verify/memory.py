"""Work in chunks that fit: by a budget, and halved where memory runs out all the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from greg_cert.errors import EngineError

T = TypeVar("T")

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


def in_chunks(run: Callable[[slice], T], count: int, size: int) -> Iterator[T]:
    """Results of `run` on slices of `count` items, in order; a slice that does not fit is halved.

    The smaller size is kept from then on.

    Raises:
        EngineError: if a single item does not fit.
    """
    start = 0
    while start < count:
        stop = min(count, start + size)
        try:
            result = run(slice(start, stop))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise EngineError(
                    "memory ran out on a single sample; lower `memory`, use method 'crown-ibp' or "
                    "'smoothing', or a smaller model"
                ) from error
            size = (stop - start) // 2
        else:
            yield result
            start = stop
            continue
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
