"""`config check --data` refuses what `train`, or an evaluation, would refuse, in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import exit_code
from safetensors.torch import save_file

from greg_cert.config import load_config
from greg_cert.data import load_data
from greg_cert.errors import UsageError
from greg_cert.train import check, fit

DATA = {"id": {"source": "digits", "limit": 200}, "aux": {"source": "uniform", "n": 60}}
STAGE: dict[str, Any] = {"method": "ce", "epochs": 1, "lr": 0.05, "batch_size": 16}


def experiment(
    path: Path, *, stage: Any = (), train: Any = (), data: Any = (), **more: Any
) -> Path:
    raw = {
        "data": {**DATA, **dict(data)},
        "model": {"name": "mlp"},
        "train": {"stages": [{**STAGE, **dict(stage)}], **dict(train)},
        **more,
    }
    path.write_text(yaml.safe_dump(raw))
    return path


def weights(folder: Path, **tensors: torch.Tensor) -> str:
    save_file(tensors, folder / "w.safetensors")
    return str(folder / "w.safetensors")


Refused = Callable[[Path], dict[str, Any]]
REFUSED: dict[str, tuple[Refused, str]] = {
    "auxiliary images": (
        lambda _: {"stage": {"method": "greg+"}},
        r"train\.stages\[0\]: expected at least batch_size \* candidates = 96 .*but got 60",
    ),
    "pool": (
        lambda _: {"stage": {"method": "dos", "pool": 61}},
        r"train\.stages\[0\]: expected at least pool = 61 auxiliary images, but got 60",
    ),
    "no auxiliary set": (
        lambda _: {"stage": {"method": "energy"}, "data": {"aux": None}},
        r"data\.aux: required by train\.stages\[0\]",
    ),
    "clusters": (  # 10 classes of 2 images make 20 in training, of which a step has at most so many
        lambda _: {
            "stage": {"method": "greg+", "batch_size": 480, "candidates": 1, "clusters": 480},
            "data": {"aux": {"source": "uniform", "n": 480}},
        },
        r"train\.stages\[0\]\.clusters: expected at most the \d+ candidates of a step, but got 480",
    ),
    "weights missing": (
        lambda folder: {"train": {"init": str(folder / "none.pt")}},
        r"none\.pt",
    ),
    "run folder without weights": (
        lambda folder: {"train": {"init": str(folder)}},
        r"model\.safetensors",
    ),
    "weights of another model": (
        lambda folder: {"train": {"init": weights(folder, x=torch.zeros(3))}},
        r"weights: expected the tensors of the model",
    ),
    "a model that cannot take the images": (
        lambda _: {"model": {"name": "densenet121"}},
        r"image_size|densenet121",
    ),
    "processes": (
        lambda _: {"train": {"accelerator": "cpu", "devices": 3}},
        r"train\.stages\[0\]\.batch_size: expected a multiple of the 3 processes",
    ),
    "sync_batchnorm": (
        lambda _: {"train": {"accelerator": "cpu", "sync_batchnorm": True}},
        r"train\.sync_batchnorm: expected a GPU, but got the CPU",
    ),
}
if not torch.cuda.is_available():
    REFUSED["accelerator"] = (
        lambda _: {"train": {"accelerator": "gpu"}},
        r"train\.accelerator: 'gpu' .* is not available here",
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_training_refuses(name: str, tmp_path: Path) -> None:
    made, line = REFUSED[name]
    config = load_config(experiment(tmp_path / "a.yaml", **made(tmp_path)))
    splits = load_data(config.data)
    with pytest.raises(UsageError, match=line) as told:
        check(config, splits)
    if name != "processes":  # which would start them
        with pytest.raises(UsageError) as said:
            fit(config, splits, tmp_path / "run")
        assert str(said.value) == str(told.value)
        assert not (tmp_path / "run").exists()


def test_what_a_training_takes_leaves_no_trace(tmp_path: Path) -> None:
    config = load_config(experiment(tmp_path / "a.yaml", stage={"method": "energy"}))
    before, files = torch.get_rng_state(), set(tmp_path.iterdir())
    check(config, load_data(config.data))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(tmp_path.iterdir()) == files


def test_the_command_says_so_of_each_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An experiment, a model from elsewhere, and a run that was trained."""
    good = experiment(tmp_path / "good.yaml")
    few = experiment(tmp_path / "few.yaml", stage={"method": "greg+"})
    data = {"data": {"id": DATA["id"]}}
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text(yaml.safe_dump({**data, "model": {"name": "mlp", "weights": "gone.pt"}}))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**data, "model": {"factory": "no_such_module:make"}}))
    run = fit(load_config(good), load_data(load_config(good).data), tmp_path / "run").path
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    files = [str(path) for path in (good, few, theirs, other, run, broken)]
    assert exit_code("config", "check", *files) == 0
    capsys.readouterr()
    assert exit_code("config", "check", *files, "--data", "--json") == 2
    said = capsys.readouterr()
    errors = {Path(r["file"]).name: r["error"] for r in json.loads(said.out)["files"]}
    assert errors["good.yaml"] is errors["run"] is None
    assert "96 auxiliary images, but got 60" in errors["few.yaml"]
    assert "gone.pt" in errors["theirs.yaml"]
    assert "model.factory" in errors["other.yaml"]
    assert "model.safetensors" in errors["broken"]
    assert len(said.err.splitlines()) == 4
