"""Selection from a pool in memory: seconds, and peak resident memory, of one epoch's choice.

Run: python benchmarks/pool.py [--rows 600000] [--dim 1024] [--clusters 1024] [--threads 2]
The defaults are ImageNet's pool in the paper and the features of DenseNet-121.
"""

from __future__ import annotations

import argparse
import resource
import time

import faiss
import torch

from greg_cert.stages import StageConfig
from greg_cert.train.feed.pool import select_rows


def peak() -> float:
    """Highest resident memory so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(f"before: peak resident {peak():.2f} GiB, the libraries themselves", flush=True)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2000, args.dim, generator=generator)
    features = torch.empty(args.rows, args.dim)
    for part in features.split(2**14):  # around common directions of unequal weight
        blob = 2000 * torch.rand(len(part), generator=generator).square()
        part.normal_(generator=generator).mul_(0.5).add_(directions[blob.long()])
    scores = torch.randn(args.rows, generator=generator)
    size = features.numel() * 4 / 2**30
    print(f"{args.rows} x {args.dim} in float32, {size:.2f} GiB: peak {peak():.2f} GiB", flush=True)
    for strategy in ("greedy", "two_ended"):
        stage = StageConfig(
            method="greg", epochs=1, lr=0.1, strategy=strategy, clusters=args.clusters, pool=1
        )
        begun = time.perf_counter()
        low, _ = select_rows(stage, features, scores, None, 10 * args.clusters, 0)
        seconds = time.perf_counter() - begun
        print(f"{strategy:10s}{seconds:8.1f} s, {len(low)} rows: peak {peak():.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
