"""What every method by sampling takes: numbers of draws, names of samples, draws in batches."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from greg_cert.errors import UsageError


def sample_indices(indices: Tensor | None, count: int) -> list[int]:
    """The names of `count` samples, by default their positions.

    Raises:
        UsageError: unless `indices` holds one integer >= 0 a sample.
    """
    if indices is None:
        return list(range(count))
    integral = not (indices.is_floating_point() or indices.is_complex())
    if indices.shape != (count,) or not integral or indices.dtype == torch.bool:
        raise UsageError(
            f"expected indices ({count},) of an integer type, "
            f"but got {tuple(indices.shape)} of {indices.dtype}"
        )
    names = [int(i) for i in indices.tolist()]
    if min(names) < 0:
        raise UsageError(f"expected indices >= 0, but got {min(names)}")
    return names


def check_count(name: str, value: int, least: int) -> None:
    """Raises `UsageError` unless `value` is an integer of at least `least`."""
    try:
        enough = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        enough = False
    if not enough:
        raise UsageError(f"expected an integer {name} >= {least}, but got {value}")


def rechunk(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of all blocks in order, `size` at a time; the last piece may be smaller."""
    held: list[Tensor] = []
    rows = 0
    for block in blocks:
        held.append(block)
        rows += len(block)
        if rows < size:
            continue
        joined = torch.cat(held) if len(held) > 1 else block
        whole = rows - rows % size
        yield from joined[:whole].split(size)
        held, rows = [joined[whole:]], rows - whole
    if rows:
        yield torch.cat(held)
