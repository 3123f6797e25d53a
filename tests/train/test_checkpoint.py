"""Checkpoints and metrics are believed only as they were written, and where the run can stand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import flips
import pytest
import torch
from trained import Stopped, Stopper, rows_of

from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import RunError, UncheckedFileWarning
from greg_cert.runs.records import RunFolder
from greg_cert.runs.training_log import read_training_log
from greg_cert.stages import StageConfig
from greg_cert.train import fit
from greg_cert.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from greg_cert.train.progress import check_place


def experiment(init: Path | None = None) -> ExperimentConfig:
    stage = {"method": "ce", "epochs": 2, "lr": 0.1, "batch_size": 20}
    train: dict[str, Any] = {"log_every": 1, "stages": [stage, {**stage, "epochs": 1}]}
    if init is not None:
        train["init"] = str(init)
    data = {"id": {"source": "digits", "limit": 200}}
    return parse_config({"data": data, "model": {"name": "mlp"}, "train": train})


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(experiment().data)


@pytest.fixture(scope="module")
def runs(splits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `whole` and `stopped`, the latter in its second epoch."""
    folder = tmp_path_factory.mktemp("runs")
    fit(experiment(), splits, folder / "whole")
    with pytest.raises(Stopped):
        fit(experiment(), splits, folder / "stopped", observer=Stopper(9))
    return folder


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(runs / "whole", tmp_path / "whole"))


@pytest.fixture
def stopped(runs: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(runs / "stopped", tmp_path / "stopped"))


def rewrite(run: RunFolder, seal: bool = True, **changes: Any) -> None:
    if seal:
        save_checkpoint(
            run.checkpoint_file, replace(load_checkpoint(run.checkpoint_file), **changes)
        )
    else:
        content = torch.load(run.checkpoint_file, weights_only=True)
        torch.save({**content, **changes}, run.checkpoint_file)


def test_a_run_goes_on_and_ends_with_digests_of_all_its_files(
    whole: RunFolder, stopped: RunFolder, splits: DataSplits
) -> None:
    resumed = fit(experiment(), splits, stopped.path, resume=True)
    assert resumed.manifest["digests"] == whole.manifest["digests"]
    assert set(whole.manifest["digests"]) == {"config.yaml", "metrics.jsonl", "model.safetensors"}
    assert whole.load_model()
    assert len(read_training_log(resumed.path).steps) == len(read_training_log(whole.path).steps)


@pytest.mark.parametrize("changes", [{"stage": 99}, {"step": 0}, {"epoch": 0}, {"journal": None}])
def test_an_edited_checkpoint_is_refused(
    stopped: RunFolder, splits: DataSplits, changes: dict[str, Any]
) -> None:
    rewrite(stopped, seal=False, **changes)
    with pytest.raises(RunError, match=r"last\.pt: field digest: expected"):
        fit(experiment(), splits, stopped.path, resume=True)
    assert not stopped.complete


def test_a_checkpoint_of_no_place_in_the_run_is_refused(
    stopped: RunFolder, splits: DataSplits
) -> None:
    """Also where it has a digest of its own, and where it is of an earlier version."""
    rewrite(stopped, stage=99)
    line = r"last\.pt: field stage: expected an integer from 0 to 2, but got 99"
    with pytest.raises(RunError, match=line):
        fit(experiment(), splits, stopped.path, resume=True)
    content = torch.load(stopped.checkpoint_file, weights_only=True)
    del content["digest"], content["journal"]
    torch.save(content, stopped.checkpoint_file)
    with (
        pytest.warns(UncheckedFileWarning, match=r"last\.pt was written by an earlier"),
        pytest.raises(RunError, match=line),
    ):
        fit(experiment(), splits, stopped.path, resume=True)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_the_state_of_another_model_is_refused(
    stopped: RunFolder, splits: DataSplits, part: str
) -> None:
    rewrite(stopped, **{part: {"odd": torch.zeros(1)}})
    with pytest.raises(RunError, match=r"last\.pt: expected the state of this model and its opt"):
        fit(experiment(), splits, stopped.path, resume=True)


STAGES = [
    StageConfig(method="ce", epochs=3, lr=0.1),
    StageConfig(method="greg+", epochs=2, lr=0.1, pool=64, m_out=-3.0),
]
PLAN = [(stage, 5) for stage in STAGES]
INDICES = torch.tensor([3, 9])
SECOND = {"stage": 1, "epoch": 1, "step": 20, "m_in": -9.0, "m_out": -3.0}


def at(**fields: Any) -> Checkpoint:
    start = {"stage": 0, "epoch": 0, "batch": 0, "step": 0, "m_in": None, "m_out": None}
    return Checkpoint(**{**start, **fields}, model={}, optimizer={})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"epoch": 2, "batch": 4, "step": 14},
        {"stage": 1, "step": 15},
        SECOND,
        {**SECOND, "batch": 2, "step": 22, "low": INDICES, "high": INDICES},
        {"stage": 2, "step": 25},
    ],
)
def test_a_place_in_the_run(fields: dict[str, Any]) -> None:
    check_place(at(**fields), PLAN, 10, Path("last.pt"))


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("stage", {"stage": 3}),
        ("stage", {"stage": -1}),
        ("stage", {"stage": True}),
        ("stage", {"stage": 1.0, "step": 15}),
        ("epoch", {"epoch": 3, "step": 15}),
        ("epoch", {"epoch": -1, "step": -5}),
        ("epoch", {"stage": 2, "epoch": 1, "step": 25}),
        ("batch", {"batch": 5, "step": 5}),
        ("batch", {"stage": 2, "batch": 1, "step": 26}),
        ("step", {"step": 1}),
        ("step", {"stage": 2, "step": 24}),
        ("step", {"epoch": 1, "step": "5"}),
        ("m_in", {"m_in": 1.0}),
        ("m_in", {**SECOND, "m_in": None}),
        ("m_in", {**SECOND, "m_in": float("nan")}),
        ("m_in", {**SECOND, "m_in": "auto"}),
        ("m_out", {**SECOND, "m_out": -2.0}),
        ("low", {"low": INDICES}),
        ("low", {**SECOND, "batch": 2, "step": 22}),
        ("low", {**SECOND, "batch": 2, "step": 22, "low": INDICES + 1, "high": INDICES}),
        ("high", {**SECOND, "batch": 2, "step": 22, "low": INDICES, "high": INDICES - 4}),
        ("high", {**SECOND, "batch": 2, "step": 22, "low": INDICES, "high": INDICES.float()}),
        ("high", {**SECOND, "batch": 2, "step": 22, "low": INDICES, "high": INDICES[:0]}),
    ],
)
def test_no_place_in_the_run(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=rf"^last\.pt: field {field}: expected .*, but got "):
        check_place(at(**fields), PLAN, 10, Path("last.pt"))


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    state = at(**SECOND, low=INDICES, high=INDICES, journal="0" * 64)
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    state = replace(state, model={"w": torch.arange(8.0)}, optimizer=momentum)
    save_checkpoint(path, state)
    whole = repr(load_checkpoint(path))
    assert whole == repr(state)
    for found in flips.believed(path, lambda: repr(load_checkpoint(path)), 25):
        assert found == whole


def damaged(content: bytes) -> bytes:
    """One digit of the loss in the second line is another."""
    lines = content.split(b"\n")
    at_ = lines[1].index(b'"loss": ') + len(b'"loss": ') + 3
    lines[1] = (
        lines[1][:at_] + (b"1" if lines[1][at_ : at_ + 1] != b"1" else b"2") + lines[1][at_ + 1 :]
    )
    return b"\n".join(lines)


def test_other_rows_of_metrics_are_not_drawn(whole: RunFolder, stopped: RunFolder) -> None:
    content = whole.metrics_file.read_bytes()
    first_rows = b"".join(content.splitlines(keepends=True)[:-1])
    for other in (damaged(content), first_rows, content + b"\n"):
        whole.metrics_file.write_bytes(other)
        with pytest.raises(RunError, match=r"metrics\.jsonl: (field digests\.metrics|line)"):
            read_training_log(whole.path)
    whole.metrics_file.write_bytes(content)
    whole.manifest_file.write_bytes(
        whole.manifest_file.read_bytes().replace(b'"seed": 0', b'"seed": 1')
    )
    with pytest.raises(RunError, match=r"manifest\.json: field digest"):
        read_training_log(whole.path)
    assert len(read_training_log(stopped.path).steps) == 9  # has no end yet


def test_a_flipped_bit_in_the_metrics_is_refused(whole: RunFolder) -> None:
    def read() -> object:
        return read_training_log(whole.path)

    assert flips.believed(whole.metrics_file, read, 25) == []


def test_a_run_does_not_go_on_beside_other_rows_of_metrics(
    stopped: RunFolder, splits: DataSplits
) -> None:
    content = stopped.metrics_file.read_bytes()
    for other in (damaged(content), b"x" + content, b""):
        stopped.metrics_file.write_bytes(other)
        with pytest.raises(RunError, match=r"metrics\.jsonl: field journal of the checkpoint"):
            fit(experiment(), splits, stopped.path, resume=True)
        assert stopped.metrics_file.read_bytes() == other  # nothing of it is lost
    stopped.metrics_file.unlink()  # without the rows it may
    run = fit(experiment(), splits, stopped.path, resume=True)
    steps = [row["step"] for row in rows_of(run.path)]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert len(read_training_log(run.path).steps) == len(steps)


def test_training_does_not_begin_with_weights_that_are_not_the_runs(
    whole: RunFolder, splits: DataSplits, tmp_path: Path
) -> None:
    state = whole.read_weights()
    state["head.bias"] += 1
    model = whole.load_model()
    model.load_state_dict(state)
    whole.save_weights(model)  # whole, with its digest, but another's
    with pytest.raises(RunError, match=r"field digests\.model\.safetensors of manifest\.json"):
        fit(experiment(whole.path), splits, tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_an_unfinished_run_of_an_earlier_version_goes_on(
    stopped: RunFolder, splits: DataSplits
) -> None:
    manifest = json.loads(stopped.manifest_file.read_text())
    del manifest["digest"], manifest["digests"]
    stopped.manifest_file.write_text(json.dumps(manifest))
    content = torch.load(stopped.checkpoint_file, weights_only=True)
    del content["digest"], content["journal"]
    torch.save(content, stopped.checkpoint_file)
    with pytest.warns(UncheckedFileWarning) as told:
        run = fit(experiment(), splits, stopped.path, resume=True)
    assert len(told) == 2  # the manifest, the checkpoint
    assert run.config == experiment()
    assert run.load_model()
