"""Selection from a pool on disk: time of each phase, and peak resident memory, map included.

Run: python benchmarks/pool.py [--rows 10000000] [--dim 128] [--clusters 1000] [--dtype float16]
The store is made under --folder (the temporary folder by default) and deleted at the end.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from greg_cert.train.feed.feature_store import FeatureStore
from greg_cert.train.feed.pool import collect_ends, fit_centroids, sample_pool

LIMIT = 2 * 2**30  # bytes


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class Phase:
    """Time of a block, and its peaks of resident memory: all, and what is not of a file."""

    def __init__(self, name: str, peaks: list[tuple[int, int]]) -> None:
        self.name, self.peaks, self.beyond, self.over = name, peaks, 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while True:
            self.beyond = max(self.beyond, status("RssAnon"))
            if self.over.wait(0.02):
                return

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
        self.begun = time.perf_counter()
        self.watcher.start()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.begun
        self.over.set()
        self.watcher.join()
        peak = status("VmHWM")
        self.peaks.append((peak, self.beyond))
        print(
            f"{self.name:32s}{seconds:8.1f} s   peak resident {peak / 2**20:6.0f} MiB, "
            f"beyond the map {self.beyond / 2**20:6.0f} MiB",
            flush=True,
        )


def write_shard(store: FeatureStore, shard: int, directions: np.ndarray) -> None:
    """Features around common directions, of unequal weight, and scores that depend on both."""
    start, stop = store.span(shard)
    generator = np.random.default_rng((7, shard))
    n = stop - start
    blob = (len(directions) * generator.random(n) ** 2).astype(np.int64)
    features = directions[blob] + 0.08 * generator.standard_normal((n, store.dim), dtype=np.float32)
    scores = (blob % 17 + generator.standard_normal(n)).astype(np.float32)
    store.write(shard, features.astype(store.dtype), scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    needed = args.rows * (args.dim * np.dtype(args.dtype).itemsize + 4)
    free = shutil.disk_usage(args.folder).free
    if free < 1.2 * needed:
        raise SystemExit(f"expected {1.2 * needed / 1e9:.1f} GB free, but got {free / 1e9:.1f}")
    print(
        f"{args.rows} x {args.dim} {args.dtype} ({needed / 1e9:.2f} GB), k={args.clusters}, "
        f"{args.threads} threads, faiss {faiss.__version__}, {faiss.get_num_gpus()} GPUs"
    )
    directions = np.random.default_rng(0).standard_normal((5000, args.dim), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory(prefix="greg-pool-", dir=args.folder) as folder:
        store = FeatureStore.create(Path(folder), rows=args.rows, dim=args.dim, dtype=args.dtype)
        before = status("VmRSS")
        print(f"before: resident {before / 2**20:.0f} MiB, the libraries themselves")
        with Phase("write the store", []):
            for shard in store.missing():
                write_shard(store, shard, directions)
        peaks: list[tuple[int, int]] = []
        with Phase("k-means, 256 rows a cluster", peaks):
            centroids = fit_centroids(store, args.clusters)
        with Phase("assign and keep both ends", peaks):
            ends = collect_ends(store, centroids, 1)
        print(f"{len(ends.low())} low and {len(ends.high())} high rows")
        for strategy in ("random", "greedy"):
            with Phase(f"sample_pool, {strategy}", peaks):
                sample_pool(store, strategy, args.clusters)
    resident, beyond = (max(column) for column in zip(*peaks, strict=True))
    print(
        f"peaks of the selection: resident {resident / 2**20:.0f} MiB, beyond the map "
        f"{beyond / 2**20:.0f} MiB: {'within' if beyond <= LIMIT else 'BEYOND'} 2 GiB"
    )


if __name__ == "__main__":
    main()
