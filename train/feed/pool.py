"""Choosing the auxiliary images of a whole epoch at once, from a pool drawn anew each time.

Images stay where they are; the features of the pool are held in the first process's memory.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.errors import DataError, GregCertError
from greg_cert.seeded import generator_for
from greg_cert.stages import StageConfig
from greg_cert.train.feed.feed import Feed
from greg_cert.train.outliers.choose import Picks, posterior_between
from greg_cert.train.outliers.finite import unit_rows
from greg_cert.train.outliers.kmeans import fit_faiss
from greg_cert.train.outliers.posterior import posterior_sample
from greg_cert.train.outliers.sampling import cluster_ends, greedy_sample

# Streams of random numbers beside those of greg_cert.train.feed.feed.
_POOL, _CHOICE, _ORDER, _KNOWN = range(101, 105)
_CLUSTERS = 1024  # where the stage does not say
_TRAIN_ROWS = 256  # a cluster, that k-means is fitted to at most, as faiss does by default
_BATCH = 512  # images a pass
_CHUNK = 2**14  # rows normalised at a time
_MAX_KNOWN = 20_000  # ID samples that a posterior learns from


def choose_for_epoch(stage: StageConfig, feed: Feed, key: tuple[int, ...], wanted: int) -> Picks:
    """The auxiliary images of one epoch, chosen by the model as it stands from a fresh pool.

    `key` is (seed, stage, epoch); so many as `wanted` are chosen at each end.

    Raises:
        DataError: where the model's features or scores are not finite.
    """
    assert feed.aux_set is not None
    cpu = torch.device("cpu")
    count = len(feed.aux_set)
    pool = torch.randperm(count, generator=generator_for(cpu, *key, _POOL))[: stage.pool]
    if not stage.chooses:
        return Picks(pool, pool)
    seed = generator_for(cpu, *key, _CHOICE).initial_seed() % 2**31  # as faiss takes them
    features, scores = _look_at(feed, pool, stage.score)
    known = _known(feed, stage, key)  # every process takes part, so not inside `once`
    low, high = feed.processes.once(
        lambda: select_rows(stage, features, scores, known, min(wanted, len(pool)), seed)
    )
    if stage.share_ends:
        low = high = torch.cat([low, high])
    mix = generator_for(cpu, *key, _ORDER)  # or clusters would come one after another
    first = pool[low[torch.randperm(len(low), generator=mix)]]
    return Picks(
        first, first if stage.one_list else pool[high[torch.randperm(len(high), generator=mix)]]
    )


def _look_at(feed: Feed, pool: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """Features (N, D) and scores (N,) of the pool, on the CPU; of no meaning but in the first."""
    assert feed.aux_set is not None
    look, processes, batches = feed.look(score), feed.processes, pool.split(_BATCH)
    features, scores = torch.empty(0, 0), torch.empty(len(pool))
    for number in range(0, len(batches), processes.size):
        # Where the batches do not divide evenly, the last one is looked at more than once.
        mine = batches[min(number + processes.rank, len(batches) - 1)]
        failed = None
        try:
            found = look(feed.aux_set.pixels(mine))
            if not all(bool(part.isfinite().all()) for part in found):
                raise DataError("pool: expected finite features and scores, but got others")
        except GregCertError as error:
            failed = error
        processes.check(failed)
        missing = len(batches[0]) - len(mine)
        start = number * _BATCH
        rows = slice(start, start + processes.size * _BATCH)
        wide = processes.gather(F.pad(found[0], (0, 0, 0, missing)))
        high = processes.gather(F.pad(found[1], (0, missing)))
        if processes.first:
            if start == 0:
                features = torch.empty(len(pool), wide.shape[1])
            features[rows] = wide[: len(pool) - start].cpu()
            scores[rows] = high[: len(pool) - start].cpu()
    return features, scores


def _known(feed: Feed, stage: StageConfig, key: tuple[int, ...]) -> Tensor | None:
    """Features of ID samples, where the strategy asks for them."""
    if stage.strategy != "posterior":
        return None
    look, images = feed.look(stage.score), feed.train_set
    generator = generator_for(torch.device("cpu"), *key, _KNOWN)
    order = torch.randperm(len(images), generator=generator)[:_MAX_KNOWN]
    return torch.cat([look(images.pixels(i))[0].cpu() for i in order.split(_BATCH)])


def select_rows(
    stage: StageConfig,
    features: Tensor,
    scores: Tensor,
    known: Tensor | None,
    wanted: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Rows of a pool for L_S and for L_∇, so many as `wanted` at each end.

    They are fewer where a cluster has too few members. Features (N, D) are float32 on the CPU;
    `known` (M, D) are those of ID samples, for `posterior`.
    """
    if known is not None:
        posterior = posterior_between(known, features.split(_CHUNK))
        low = posterior_sample(features, posterior, wanted, torch.Generator().manual_seed(seed))
        return low, low
    if stage.strategy == "greedy":
        low = greedy_sample(scores, wanted)
        return low, low
    k = min(stage.clusters or _CLUSTERS, wanted)
    each = -(-wanted // k)
    if each * k > len(scores):
        each -= 1
    cluster = _clusters(features, k, seed)
    low = cluster_ends(cluster, scores, k, each)
    return low, low if stage.strategy == "dos" else cluster_ends(cluster, -scores, k, each)


def _clusters(features: Tensor, k: int, seed: int) -> Tensor:
    """The cluster of each row's direction (N,), by k-means that faiss fits to a random sample."""
    count = min(len(features), k * _TRAIN_ROWS)
    rows = np.random.default_rng(seed).choice(len(features), count, replace=False, shuffle=False)
    sample = features[torch.from_numpy(np.sort(rows))]
    for part in sample.split(_CHUNK):
        part.copy_(unit_rows(part))
    engine = fit_faiss(sample, k, iterations=20, seed=seed)
    parts = features.split(_CHUNK)
    nearest = [engine.index.search(unit_rows(part).numpy(), 1)[1][:, 0] for part in parts]
    return torch.from_numpy(np.concatenate(nearest))
