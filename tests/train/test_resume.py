"""Stopped anywhere, with a checkpoint in mid-epoch, moved data, and a disk that fails."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained import Stopped, Stopper, rows_of, same_weights

import greg_cert.train.checkpoint as checkpoint_module
from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import DataError, RunError
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit


def experiment(model: str = "mlp", **stage: Any) -> ExperimentConfig:
    raw = {
        "seed": 4,
        "data": {
            "id": {"source": "digits", "limit": 400},
            "aux": {"source": "photographs", "n": 400},
        },
        "model": {"name": model},
        "train": {
            "accelerator": "cpu",  # where the same seed gives the same bits
            "log_every": 1,
            "checkpoint_every": 3,
            "stages": [
                {"method": "ce", "epochs": 4, "lr": 0.1, "batch_size": 20},
                {"method": "greg+", "epochs": 2, "lr": 0.01, "batch_size": 20, **stage},
            ],
        },
    }
    return parse_config(raw)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(experiment().data)


@pytest.fixture(scope="module")
def whole(splits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(experiment(), splits, tmp_path_factory.mktemp("runs") / "whole")


ADAM = {"pool": 300, "optimizer": "adam", "betas": (0.8, 0.99), "weight_decay": 0.0}


@pytest.mark.parametrize(
    "changes",
    [ADAM, {"model": "cnn_small", "lambda_lipschitz": 0.1, "penalty_every": 4}],
)
def test_stopped_in_mid_epoch_a_run_goes_on_from_its_last_checkpoint(
    splits: DataSplits, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = experiment(**changes, augment="shift")
    whole = fit(config, splits, tmp_path / "whole")
    folder, at = tmp_path / "stopped", 4 * (len(splits.train) // 20) + 8  # in the second stage
    with pytest.raises(Stopped):
        fit(config, splits, folder, observer=Stopper(at))
    cut = torch.load(RunFolder(folder).checkpoint_file, weights_only=True)
    assert cut["step"] == at - at % 3  # at most a few steps old
    assert cut["batch"] > 0
    begun, (group,) = cut["optimizer"]["state"][0], cut["optimizer"]["param_groups"]
    if "optimizer" in changes:
        assert begun.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert int(begun["step"]) == cut["batch"] + cut["epoch"] * (len(splits.train) // 20)
        assert (group["betas"], group["weight_decay"]) == ((0.8, 0.99), 0.0)
    else:
        assert begun.keys() == {"momentum_buffer"}
        assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (True, 0.9, 5e-4)
    watcher = Stopper()
    resumed = fit(config, splits, folder, resume=True, observer=watcher)
    saved = torch.load(resumed.checkpoint_file, weights_only=True)["step"]
    assert watcher.done == watcher.steps == saved
    assert same_weights(whole, resumed)
    assert rows_of(whole.path)[-1] == rows_of(resumed.path)[-1]


CHANGED = r"^resume: the data of .* changed since it was begun$"


def with_images(path: Path) -> ExperimentConfig:
    """The experiment with auxiliary images of an array file."""
    raw = experiment().model_dump(mode="json")
    raw["data"]["aux"] = {"source": "array", "path": str(path), "images": "x"}
    return parse_config(raw)


@pytest.mark.parametrize("at", [1, 40])  # before and after the first checkpoint
def test_a_run_goes_on_where_its_data_have_moved(tmp_path: Path, at: int) -> None:
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8)
    np.savez(here, x=images)
    config = with_images(here)
    whole = fit(config, load_data(config.data), tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(config, load_data(config.data), tmp_path / "run", observer=Stopper(at))
    here.rename(there)
    config = with_images(there)
    resumed = fit(config, load_data(config.data), tmp_path / "run", resume=True)
    assert same_weights(whole, resumed)
    assert resumed.config == config
    assert resumed.load_data().fingerprints() == whole.manifest["data"]
    with pytest.raises(DataError, match=r"^data\.aux\.path: "):
        whole.load_data()
    moved = fit(config, load_data(config.data), whole.path, resume=True)  # it is complete
    assert moved.load_data().fingerprints() == whole.manifest["data"]
    assert same_weights(moved, resumed)
    np.savez(here, x=images[::-1])
    config = with_images(here)
    with pytest.raises(RunError, match=CHANGED):
        fit(config, load_data(config.data), whole.path, resume=True)


def test_other_data_where_they_were_moved_to_are_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "here.npz", x=images)
    np.savez(tmp_path / "there.npz", x=images[::-1])
    config = with_images(tmp_path / "here.npz")
    with pytest.raises(Stopped):
        fit(config, load_data(config.data), tmp_path / "run", observer=Stopper(40))
    before = config
    config = with_images(tmp_path / "there.npz")
    with pytest.raises(RunError, match=CHANGED):
        fit(config, load_data(config.data), tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").config == before


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_named_and_loses_nothing(
    whole: RunFolder,
    splits: DataSplits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    real, calls = torch.save, 0

    def full(fields: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            Path(target).write_bytes(b"half a checkpoint")
            raise failure
        real(fields, target)

    monkeypatch.setattr(checkpoint_module.torch, "save", full)
    with pytest.raises(RunError, match=r"checkpoint: cannot write .*last\.pt.*is kept"):
        fit(experiment(), splits, tmp_path / "run")
    left = [p.name for p in RunFolder(tmp_path / "run").checkpoint_file.parent.iterdir()]
    assert left == ["last.pt"], "no half-written file may stay"
    monkeypatch.undo()
    resumed = fit(experiment(), splits, tmp_path / "run", resume=True)
    assert same_weights(whole, resumed)
