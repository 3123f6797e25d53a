"""Batches: the same from disk as from memory, from any step on, and in shares of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import read
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.data import ImageSet, load_data
from greg_cert.errors import ConfigError, TrainingError
from greg_cert.processes import Processes
from greg_cert.stages import StageConfig
from greg_cert.train import fit
from greg_cert.train.divergence import FirstNonFinite
from greg_cert.train.feed.batches import DeviceImages
from greg_cert.train.feed.feed import Feed
from greg_cert.train.objective.step import Batch
from greg_cert.train.outliers.choose import Picks

CPU = torch.device("cpu")
KEY = (0, 1, 2)


class Part(Processes):
    """A process of several, without the others."""

    def gather(self, values: Tensor) -> Tensor:
        return values


def images(count: int, seed: int, labels: bool) -> DeviceImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    known = torch.arange(count) % 5 if labels else None
    return DeviceImages(ImageSet(f"set {seed}", pixels, known), CPU)


def look(score: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda x: (x.flatten(1)[:, :7], x.mean((1, 2, 3)))


def feed(rank: int = 0, size: int = 1) -> Feed:
    return Feed(
        train_set=images(50, 1, labels=True),
        aux_set=images(90, 2, labels=False),
        look=look,
        processes=Part(rank, size),
        device=CPU,
        channels_last=False,
    )


def stage(method: str = "greg", **changes: Any) -> StageConfig:
    raw = {"method": method, "epochs": 1, "lr": 0.1, "batch_size": 8, "augment": "shift_flip"}
    return StageConfig(**{**raw, **changes})


def tensors(batch: Batch) -> list[Tensor]:
    return [t for t in (batch.images, batch.labels, batch.low, batch.high) if t is not None]


@pytest.mark.parametrize("augment", ["shift_flip", "resized_crop_flip"])
@pytest.mark.parametrize("method", ["ce", "greg", "greg+", "dos", "poem", "openmix"])
def test_an_epoch_can_begin_at_any_step(method: str, augment: str) -> None:
    chosen = stage(method, augment=augment)
    whole = list(feed().batches(chosen, KEY))
    late = list(feed().batches(chosen, KEY, start=4))
    assert len(whole) == 6
    for one, two in zip(whole[4:], late, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


@pytest.mark.parametrize(
    ("method", "picks"),
    [
        ("energy", None),
        ("openmix", None),
        ("greg+", Picks(torch.arange(30), torch.arange(30, 60))),
    ],
)
@pytest.mark.parametrize("augment", ["shift_flip", "resized_crop_flip"])
@pytest.mark.parametrize("disk", [False, True])
def test_processes_share_one_batch(
    method: str, picks: Picks | None, augment: str, disk: bool, tmp_path: Path
) -> None:
    chosen = stage(method, augment=augment)
    sets = [feed(r, n) for r, n in ((0, 1), (0, 2), (1, 2))]
    if disk:
        _folder(tmp_path, ["a"], 90, seed=3)
        files = read(tmp_path, labelled=False, channels=1, size=8, keep="disk")
        sets = [replace(one, aux_set=DeviceImages(files, CPU)) for one in sets]
    alone, *shares = (one.batches(chosen, KEY, picks=picks) for one in sets)
    parts = zip(*shares, strict=True)
    for whole, pair in zip(alone, parts, strict=True):
        joined = [torch.cat(both) for both in zip(*map(tensors, pair), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(tensors(whole), joined, strict=True))


def test_two_ends_are_the_extremes_of_the_candidates() -> None:
    plain = stage("greg+", augment="none", clusters=1, aux_ratio=1, candidates=3)
    batch = next(feed().batches(plain, KEY))
    assert len(batch.low) == len(batch.high) == 8
    assert batch.low.mean((1, 2, 3)).max() < batch.high.mean((1, 2, 3)).min()
    shared = next(feed().batches(stage("greg+", augment="none", clusters=1, share_ends=True), KEY))
    assert shared.low is shared.high
    assert len(shared.low) == 16


def test_random_outliers_come_from_the_pool_of_the_epoch_alone() -> None:
    picks = Picks(torch.tensor([3, 5, 8]), torch.tensor([3, 5, 8]))
    allowed = feed().aux_set
    pool = allowed.pixels(picks.low)
    for batch in feed().batches(stage("energy", augment="none"), KEY, picks=picks):
        found = (batch.low[:, None] == pool).flatten(2).all(2)
        assert bool(found.any(1).all())


def _folder(path: Path, names: list[str], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for k, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (8, 8), dtype=np.uint8)
            pixels[:, k] += 100  # so that there is something to learn
            Image.fromarray(pixels).save(path / name / f"{i}.png")


def _from_folders(tmp_path: Path, keep: str) -> ExperimentConfig:
    first = {"method": "ce", "epochs": 4, "lr": 0.05, "batch_size": 8}
    second = {"method": "greg+", "epochs": 1, "lr": 0.01, "batch_size": 8, "m_in": -5, "m_out": -1}
    return parse_config(
        {
            "data": {
                "id": {"source": "folder", "path": str(tmp_path / "id"), "keep": keep},
                "aux": {"source": "folder", "path": str(tmp_path / "aux"), "keep": keep},
                "image_size": 8,
                "channels": 1,
                "mean": [0.4],
                "std": [0.2],
            },
            "model": {"name": "mlp"},
            "train": {"stages": [first, second]},
        }
    )


def test_from_disk_a_run_is_the_same_as_from_memory(tmp_path: Path) -> None:
    _folder(tmp_path / "id", ["a", "b", "c"], 40, 0)
    _folder(tmp_path / "aux", ["x"], 60, 1)
    weights = []
    for keep in ("memory", "disk"):
        config = _from_folders(tmp_path, keep)
        splits = load_data(config.data)
        assert isinstance(splits.train, ImageSet) == (keep == "memory")
        weights.append(load_file(fit(config, splits, tmp_path / keep).weights_file))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_model_without_second_derivatives_is_refused_with_the_way_out(tmp_path: Path) -> None:
    raw = {
        "data": {
            "id": {"source": "digits", "limit": 100},
            "aux": {"source": "photographs", "n": 50},
            "image_size": 32,
        },
        "model": {"name": "torchvision/mobilenet_v3_small"},
    }
    greg = {"method": "greg", "epochs": 1, "lr": 1e-4, "m_in": -9, "m_out": -1, "batch_size": 40}
    config = parse_config({**raw, "train": {"stages": [greg]}})
    splits = load_data(config.data)
    with pytest.raises(ConfigError, match="set estimator: finite-difference"):
        fit(config, splits, tmp_path / "a")
    greg["estimator"] = "finite-difference"
    config = parse_config({**raw, "train": {"stages": [greg]}})
    assert fit(config, splits, tmp_path / "b").complete


def test_the_first_value_that_is_not_finite_is_remembered(tmp_path: Path) -> None:
    non_finite = FirstNonFinite(Processes(), tmp_path / "last.pt")
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan"), 2.0])
    non_finite.see(1, {"a": good, "b": good})
    non_finite.check()
    non_finite.see(2, {"a": good, "b": bad})
    non_finite.see(3, {"a": bad, "b": good})
    with pytest.raises(TrainingError, match=r"at step 3: b is not finite; .*: none yet"):
        non_finite.check()
