"""What is left to do, in chunks small enough that a kill loses little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from greg_cert.certificates.methods import PROOFS
from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph.trace import trace_model

LARGEST_CHUNK = 64
# On 8×8 digits a chunk of 32 is as fast a sample as any larger one by CROWN, to 5 %.
_LARGEST_BY_NEURONS = 32
# Multiply-adds × neurons that take about ten seconds: CROWN took 5e-9 to 8e-9 s for one of them on
# a CPU core, for networks of 5e6 to 3e9.
_WORK = 2e9
# Multiply-adds of a pass whose search and attacks take about a minute a core: some thousand passes.
_PASSES = 6e7
_BATCHED = frozenset({"sdp-crown", "lipschitz", "clever"})


@dataclass(frozen=True)
class Task:
    """A chunk of samples of one set, for each of the runs that lack some of them.

    One process does a task under all its runs, so that what is finished stays paired.
    """

    part: str
    work: tuple[tuple[int, tuple[int, ...]], ...]  # a run's number, and the indices that it lacks


def cut(order: Sequence[int], size: int, *, rounded: bool) -> list[tuple[int, ...]]:
    """The indices in chunks of at most `size`, in their order.

    Without `rounded` all are of that size, but for the last one.

    A row's last bits depend on the others of its chunk. With `rounded` no chunk reaches over a
    round number of samples (10, 20 … 100, 200 …), so what was verified of so many has the chunks
    that it has among more of them.
    """
    chunks, start = [], 0
    while start < len(order):
        stage = 10 ** max(1, len(str(start)) - 1) if rounded else size
        pieces = math.ceil(stage / size)  # of a stage, as even as may be
        ends = [start + stage * (k + 1) // pieces for k in range(pieces)]
        chunks += [tuple(order[a:b]) for a, b in zip([start, *ends], ends, strict=False)]
        start += stage
    return [chunk for chunk in chunks if chunk]


def plan_tasks(
    chunks: Mapping[str, Sequence[Sequence[int]]],
    pending: Mapping[tuple[int, str], Set[int]],
    limit: int | None = None,
) -> list[Task]:
    """Tasks for all that is pending, in the order of `chunks`.

    Chunks are of all that is wanted, not of what is pending, so that a run that was killed goes on
    with the chunks it would have had. `pending` has for each run's number and set what the run
    lacks; `limit` is of the samples in all tasks together.
    """
    left = math.inf if limit is None else limit
    numbers = sorted({number for number, _ in pending})
    tasks = []
    for part, cuts in chunks.items():
        lacking = {n: pending.get((n, part), frozenset()) for n in numbers}
        for chunk in cuts:
            members = [i for i in chunk if any(i in s for s in lacking.values())]
            members = members[: int(min(left, len(members)))]
            if not members:
                continue
            left -= len(members)
            work = ((n, tuple(i for i in members if i in lacking[n])) for n in numbers)
            tasks.append(Task(part, tuple((n, mine) for n, mine in work if mine)))
    return tasks


def chunk_size(model: nn.Module, image_shape: tuple[int, ...], methods: Sequence[str]) -> int:
    """Samples of this network that take less than a minute, at most `LARGEST_CHUNK`, a power of 2.

    By the network's size and the methods alone, not by a clock, so that chunks are the same each
    time. Methods that pass a batch through the network work on many samples at nearly the price of
    one; those that bound each neuron by CROWN do not. Without proofs any network will do.

    Raises:
        UnsupportedModelError: for a layer that cannot be bounded soundly; names it.
    """
    try:
        graph = trace_model(model, image_shape)
    except UnsupportedModelError:
        if not set(methods).isdisjoint(PROOFS):
            raise
        return _LARGEST_BY_NEURONS
    neurons = sum(math.prod(graph.nodes[i].shape) for i in graph.activations)
    multiplied = sum(
        weight.numel() * math.prod(node.shape[1:])
        for node in graph.nodes
        if (weight := getattr(node.op, "weight", None)) is not None
    )
    if _BATCHED.issuperset(methods):
        samples, most = _PASSES / max(1, multiplied), LARGEST_CHUNK
    else:
        samples, most = _WORK / max(1, neurons * multiplied), _LARGEST_BY_NEURONS
    return int(min(most, 2 ** math.floor(math.log2(max(1.0, samples)))))
