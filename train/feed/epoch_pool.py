"""Choosing the auxiliary images of a whole epoch from one pool, drawn anew each time.

Images stay where they are; their features go to a store on disk, which need not fit in memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from greg_cert.draws import generator_for
from greg_cert.errors import GregCertError
from greg_cert.stages import StageConfig
from greg_cert.train.feed.feature_store import FeatureStore
from greg_cert.train.feed.feed import Feed, Look
from greg_cert.train.feed.pool import sample_pool
from greg_cert.train.outliers.choose import POOL_CLUSTERS, Picks, posterior_between
from greg_cert.train.outliers.posterior import boundary_scores

# Streams of random numbers beside those of greg_cert.train.feed.feed.
_POOL, _CHOICE, _ORDER, _KNOWN = range(101, 105)
_BATCH = 512
_SHARD_ROWS = 2**14
_MAX_KNOWN = 20_000  # ID samples that a posterior learns from


def choose_for_epoch(
    stage: StageConfig, feed: Feed, key: tuple[int, ...], *, folder: Path, wanted: int
) -> Picks:
    """The auxiliary images of one epoch, chosen by the model as it stands from a fresh pool.

    Args:
        stage: says how large the pool is, and how to choose.
        feed: the images and the model.
        key: (seed, stage, epoch).
        folder: where the features stand meanwhile, on a disk that all processes see; gone after.
        wanted: how many at each end.

    Raises:
        DataError: where the disk is full, or the model's features are not finite.
    """
    assert feed.aux_set is not None
    cpu = torch.device("cpu")
    count = len(feed.aux_set)
    pool = torch.randperm(count, generator=generator_for(cpu, *key, _POOL))[: stage.pool]
    if not stage.chooses:
        return Picks(pool, pool)
    wanted = min(wanted, len(pool))
    seed = generator_for(cpu, *key, _CHOICE).initial_seed() % 2**31  # as faiss takes them
    feed.world.once(lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        store = _extract(feed, pool, feed.look(stage.score), folder)
        known = _known(stage, feed, key)  # every process takes part, so not inside `once`
        low, high = feed.world.once(lambda: _select(stage, store, known, wanted, seed))
    finally:
        if feed.world.first:
            shutil.rmtree(folder, ignore_errors=True)
    if stage.share_ends:
        low = high = torch.cat([low, high])
    mix = generator_for(cpu, *key, _ORDER)  # or clusters would come one after another
    first = pool[low[torch.randperm(len(low), generator=mix)]]
    return Picks(
        first, first if stage.one_list else pool[high[torch.randperm(len(high), generator=mix)]]
    )


def _extract(feed: Feed, pool: Tensor, look: Look, folder: Path) -> FeatureStore:
    """Features and scores of the pool on disk; each process fills every so many shards."""
    assert feed.aux_set is not None
    images = feed.aux_set
    dim = look(images.pixels(pool[:1]))[0].shape[1]
    store = feed.world.once(
        lambda: FeatureStore.create(folder, rows=len(pool), dim=dim, shard_rows=_SHARD_ROWS)
    )
    failed = None
    try:
        for shard in range(feed.world.rank, store.shards, feed.world.size):
            start, stop = store.span(shard)
            parts = [look(images.pixels(i)) for i in pool[start:stop].split(_BATCH)]
            features, scores = (torch.cat(v).cpu().numpy() for v in zip(*parts, strict=True))
            store.write(shard, features, scores)
    except GregCertError as error:
        failed = error
    feed.world.check(failed)
    return store


def _known(stage: StageConfig, feed: Feed, key: tuple[int, ...]) -> Tensor | None:
    """Features of ID samples, where the strategy asks for them."""
    if stage.strategy != "posterior":
        return None
    look, images = feed.look(stage.score), feed.train_set
    generator = generator_for(torch.device("cpu"), *key, _KNOWN)
    order = torch.randperm(len(images), generator=generator)[:_MAX_KNOWN]
    return torch.cat([look(images.pixels(i))[0].cpu() for i in order.split(_BATCH)])


def _select(
    stage: StageConfig, store: FeatureStore, known: Tensor | None, wanted: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Rows of the store at both ends."""
    if known is not None:
        return _near_boundary(store, known, wanted, seed)
    if stage.strategy == "greedy":
        return sample_pool(store, "greedy", wanted, seed=seed)
    clusters = min(stage.clusters or POOL_CLUSTERS, wanted)
    count = -(-wanted // clusters) * clusters
    if count > store.rows:
        count -= clusters
    return sample_pool(store, stage.strategy, count, n_clusters=clusters, seed=seed)


def _near_boundary(
    store: FeatureStore, known: Tensor, wanted: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The rows nearest the boundary that one draw of the posterior makes, in two reads."""
    posterior = posterior_between(known, (torch.from_numpy(c.features) for c in store.chunks()))
    weights = posterior.sample(torch.Generator().manual_seed(seed))
    scores = [boundary_scores(torch.from_numpy(c.features), weights) for c in store.chunks()]
    order = np.argsort(-torch.cat(scores).numpy(), kind="stable")[:wanted]
    rows = torch.from_numpy(order.copy())
    return rows, rows
