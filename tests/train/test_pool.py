"""The choice of an epoch from one pool, against the rules by hand, alone and in processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from torch import Tensor

from greg_cert.data import ImageSet
from greg_cert.errors import DataError, GregCertError, RunError
from greg_cert.processes import Processes
from greg_cert.stages import StageConfig
from greg_cert.train.feed import pool as module
from greg_cert.train.feed.batches import DeviceImages
from greg_cert.train.feed.feed import Feed
from greg_cert.train.feed.pool import choose_for_epoch
from greg_cert.train.outliers.choose import Picks

CPU, KEY = torch.device("cpu"), (0, 1, 2)
COUNT, K = 90, 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def content() -> tuple[Tensor, Tensor]:
    """Features near six orthogonal directions, and scores with ties."""
    generator = torch.Generator().manual_seed(1)
    blob = torch.randint(K, (COUNT,), generator=generator)
    length = 1 + 3 * torch.rand(COUNT, 1, generator=generator)
    noise = 0.02 * torch.randn(COUNT, 8, generator=generator)
    features = (torch.eye(8)[blob] + noise) * length
    return features, torch.randint(0, 12, (COUNT,), generator=generator).float()


def feed(processes: Processes | None = None, marred: int | None = None) -> Feed:
    """Images that are their own number, which the model looks up."""
    features, scores = content()

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        number = (255 * images[:, 0, 0, 0]).round().long()
        found = features[number]
        return (found if marred is None else found / (number != marred)[:, None]), scores[number]

    numbers = torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    images = DeviceImages(ImageSet("numbers", numbers), CPU)
    return Feed(images, images, lambda _: look, processes or Processes(), CPU, False)


def stage(strategy: str, **changes: Any) -> StageConfig:
    raw = {"method": "greg", "epochs": 1, "lr": 0.1, "strategy": strategy, "pool": COUNT}
    return StageConfig(**{**raw, **changes})


def lowest(members: Tensor, scores: Tensor, count: int) -> Tensor:
    return scores[members].sort().values[:count]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The points that faiss was given and the centres that it has fitted, call by call."""
    found: list[tuple[Tensor, Tensor]] = []
    train = faiss.Kmeans.train

    def watched(self: Any, points: np.ndarray) -> Any:
        done = train(self, points)
        found.append((torch.from_numpy(points), torch.from_numpy(self.centroids).double()))
        return done

    monkeypatch.setattr(faiss.Kmeans, "train", watched)
    return found


@pytest.mark.parametrize("each", [1, 3, 15])
def test_both_ends_of_every_cluster_are_taken(each: int, fits: list[tuple[Tensor, Tensor]]) -> None:
    features, scores = content()
    picks = choose_for_epoch(stage("two_ended", clusters=K), feed(), KEY, K * each)
    dos = choose_for_epoch(stage("dos", clusters=K), feed(), KEY, K * each)
    assert sorted(dos.low.tolist()) == sorted(picks.low.tolist())
    assert dos.high is dos.low
    (_, centres), (_, again) = fits
    assert torch.equal(centres, again)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    cluster = torch.cdist(unit, centres).argmin(1)
    for k in range(K):
        members = (cluster == k).nonzero().squeeze(1)
        for picked, sign in ((picks.low, 1), (picks.high, -1)):
            mine = picked[cluster[picked] == k]
            assert len(set(mine.tolist())) == len(mine) == min(each, len(members))
            got = (sign * scores[mine]).sort().values
            assert torch.equal(got, lowest(members, sign * scores, each))


def test_clusters_that_are_not_named_are_as_many_as_wanted() -> None:
    """Each row is a cluster of its own where all are wanted."""
    picks = choose_for_epoch(stage("two_ended"), feed(), KEY, 10 * COUNT)
    assert 0.9 * COUNT < len(set(picks.low.tolist())) == len(picks.low)


def test_greedy_takes_the_lowest_of_all_in_mixed_order() -> None:
    scores = content()[1]
    picks = choose_for_epoch(stage("greedy"), feed(), KEY, 20)
    assert torch.equal(scores[picks.low].sort().values, scores.sort().values[:20])
    assert not torch.equal(scores[picks.low], scores[picks.low].sort().values)


def test_a_random_pool_is_drawn_anew_each_epoch() -> None:
    one, two = (
        choose_for_epoch(stage("random", pool=40), feed(), (0, 1, epoch), 10).low
        for epoch in (0, 1)
    )
    assert len(set(one.tolist())) == 40
    assert sorted(one.tolist()) != sorted(two.tolist())


def test_the_posterior_takes_as_many_as_wanted() -> None:
    picks = choose_for_epoch(stage("posterior"), feed(), KEY, 25)
    assert len(set(picks.low.tolist())) == 25
    assert picks.high is picks.low


STAGES = [
    stage("greedy"),
    stage("dos", clusters=7),
    stage("two_ended", clusters=7),
    stage("two_ended", clusters=7, share_ends=True),
    stage("posterior"),
]


def same(one: Picks, two: Picks) -> bool:
    return torch.equal(one.low, two.low) and torch.equal(one.high, two.high)


@pytest.mark.parametrize("chosen", STAGES)
def test_how_many_rows_are_treated_at_a_time_does_not_matter(
    chosen: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = choose_for_epoch(chosen, feed(), KEY, 21)
    monkeypatch.setattr(module, "_CHUNK", 8)
    monkeypatch.setattr(module, "_BATCH", 7)
    assert same(choose_for_epoch(chosen, feed(), KEY, 21), whole)


class Threads(Processes):
    """Processes that are threads, and meet at a barrier."""

    def __init__(self, rank: int, met: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(met))
        self._met, self._barrier = met, barrier

    def collect(self, value: Any) -> list[Any]:
        self._met[self.rank] = value
        self._barrier.wait(20)
        found = list(self._met)
        self._barrier.wait(20)
        return found

    def gather(self, values: Tensor) -> Tensor:
        return torch.cat(self.collect(values))

    def agree(self, value: Any) -> Any:
        return self.collect(value)[0]


def in_threads(size: int, work: Callable[[Processes], Any]) -> list[Any]:
    """What each of `size` processes returns, or the error it raises."""
    met, found, barrier = [None] * size, [None] * size, threading.Barrier(size)

    def one(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, met, barrier))
        except GregCertError as error:
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("chosen", STAGES)
def test_processes_choose_what_one_does(
    chosen: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 8)  # twelve batches, the last of which is not full
    alone = choose_for_epoch(chosen, feed(), KEY, 21)
    for size in (2, 5):
        together = in_threads(size, lambda p: choose_for_epoch(chosen, feed(p), KEY, 21))
        assert all(same(picks, alone) for picks in together)


def test_what_is_not_finite_stops_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 8)
    with pytest.raises(DataError, match="pool: expected finite features and scores"):
        choose_for_epoch(STAGES[1], feed(marred=17), KEY, 21)
    found = in_threads(3, lambda p: choose_for_epoch(STAGES[1], feed(p, marred=17), KEY, 21))
    assert [type(error) for error in found].count(DataError) == 1
    assert [type(error) for error in found].count(RunError) == 2


def test_k_means_is_fitted_to_a_bounded_sample(
    monkeypatch: pytest.MonkeyPatch, fits: list[tuple[Tensor, Tensor]]
) -> None:
    monkeypatch.setattr(module, "_TRAIN_ROWS", 5)
    choose_for_epoch(stage("dos", clusters=4), feed(), KEY, 20)
    ((points, _),) = fits
    assert points.shape == (20, 8)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(20), rtol=1e-5, atol=0)
