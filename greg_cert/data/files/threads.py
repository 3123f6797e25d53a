"""Reading in background threads, in a fixed order: decoders leave the interpreter free."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier, Lock
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_MOST = 16


def workers() -> int:
    """How many threads decode: one for each processor this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MOST, usable or 1)


def prefetch(
    items: Iterable[T], read: Callable[[T], R], *, ahead: int = 2, threads: int = 1
) -> Generator[tuple[T, R]]:
    """Each item with what `read` makes of it, read in the background before it is asked for.

    The order is that of `items`, which are drawn in the caller's own thread, `ahead` of them before
    their turn: seeded draws give the same whatever the threads do. At most `ahead` + 1 results are
    held. When the caller stops early (`close`, `break`, an error), items not yet begun are dropped
    and the threads end; with one that `items` or `read` raised, they end too.

    Args:
        items: What to read, such as batches of indices.
        read: From an item to its result, such as `images.stored`; runs in other threads.
        ahead: Items under way or ready while the caller works on one.
        threads: How many `read` may run at a time. One is enough where `read` spreads its own work,
            as `stored` of sets on disk does.

    Raises:
        ValueError: `ahead` or `threads` is less than one.
        Exception: What `read` raised, when the item's turn comes.
    """
    if ahead < 1 or threads < 1:
        raise ValueError(f"expected ahead and threads >= 1, but got {ahead} and {threads}")
    return _prefetch(items, read, ahead, threads)


def _prefetch(
    items: Iterable[T], read: Callable[[T], R], ahead: int, threads: int
) -> Generator[tuple[T, R]]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    under_way: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            under_way.append((item, pool.submit(read, item)))
            if len(under_way) > ahead:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fill(out: Any, make: Callable[[int], Any], *, threads: bool = True) -> None:
    """`out[i] = make(i)` for every i, in consecutive ranges shared among the decoding threads.

    Without `threads` all is done in the caller's, which is faster where each one is so short that
    the interpreter, which runs one thread at a time, is what takes the time.

    Raises:
        Exception: What `make` raised, the lowest range's first; ranges not yet begun are dropped.
    """

    def work(part: range) -> None:
        for at in part:
            out[at] = make(at)

    count = len(out)
    if not threads or count <= 1 or workers() == 1:
        work(range(count))
        return
    size = max(1, -(-count // (4 * workers())))
    with _starting:
        pool = _pool()
    futures = [pool.submit(work, range(i, min(i + size, count))) for i in range(0, count, size)]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


_starting = Lock()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    """The threads that all sets share; nothing that runs in them waits for another of them.

    Each computes alone: a team of threads behind every one of them would be far too many. torch
    sets that for the calling thread, and a default for threads to come, which is put back.
    """
    count, before = workers(), torch.get_num_threads()
    started = Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    for _ in range(count):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(before)
    return pool
