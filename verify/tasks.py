"""What is left to do, in chunks small enough that a kill loses little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.trace import trace_model

LARGEST_CHUNK = 32  # on 8×8 digits as fast a sample as any larger one, to 5 %
# Multiply-adds × neurons that take about ten seconds: CROWN took 5e-9 to 8e-9 s for one of them on
# a CPU core, for networks of 5e6 to 3e9.
_WORK = 2e9


@dataclass(frozen=True)
class Task:
    """A chunk of samples of one set, for each of the runs that lack some of them.

    One process does a task under all its runs, so that what is finished stays paired.

    Attributes:
        part: the set of samples.
        work: pairs of a run's number and the indices of the samples it lacks.
    """

    part: str
    work: tuple[tuple[int, tuple[int, ...]], ...]


def plan_tasks(
    wanted: Mapping[str, Sequence[int]],
    pending: Mapping[tuple[int, str], Set[int]],
    chunk: int,
    limit: int | None = None,
) -> list[Task]:
    """Tasks for all that is pending, in the order of `wanted`.

    Chunks are cut from `wanted`, not from what is pending, so that a run that was killed goes on
    with the chunks it would have had.

    Args:
        wanted: for each set of samples its indices, ascending.
        pending: for each run's number and set what the run lacks.
        chunk: samples of a task, at most.
        limit: samples in all tasks together, at most.
    """
    left = math.inf if limit is None else limit
    numbers = sorted({number for number, _ in pending})
    tasks = []
    for part, indices in wanted.items():
        lacking = {n: pending.get((n, part), frozenset()) for n in numbers}
        for start in range(0, len(indices), chunk):
            members = [
                i for i in indices[start : start + chunk] if any(i in s for s in lacking.values())
            ]
            members = members[: int(min(left, len(members)))]
            if not members:
                continue
            left -= len(members)
            work = ((n, tuple(i for i in members if i in lacking[n])) for n in numbers)
            tasks.append(Task(part, tuple((n, mine) for n, mine in work if mine)))
    return tasks


def chunk_size(model: nn.Module, image_shape: tuple[int, ...], *, bounds: bool = True) -> int:
    """Samples of this network that take some ten seconds, at most `LARGEST_CHUNK`, a power of two.

    By the network's size alone, not by a clock, so that chunks are the same each time. Without
    `bounds` any network will do.

    Raises:
        UnsupportedModelError: for a layer that cannot be bounded soundly; names it.
    """
    try:
        graph = trace_model(model, image_shape)
    except UnsupportedModelError:
        if bounds:
            raise
        return LARGEST_CHUNK
    neurons = sum(math.prod(graph.nodes[i].shape) for i in graph.activations)
    multiplied = sum(
        weight.numel() * math.prod(node.shape[1:])
        for node in graph.nodes
        if (weight := getattr(node.op, "weight", None)) is not None
    )
    samples = _WORK / max(1, neurons * multiplied)
    return int(min(LARGEST_CHUNK, 2 ** math.floor(math.log2(max(1.0, samples)))))
