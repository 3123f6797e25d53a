"""Training runs: determinism, resume after kill -9, what a folder holds, and refusals."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import FORKS, exit_code
from safetensors.torch import load_file
from trained import Stopped, Stopper, rows_of, same_weights

from greg_cert.config import ExperimentConfig, dump_config, parse_config
from greg_cert.config.fields import difference
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import ConfigError, RunError, TrainingError, UsageError
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit
from greg_cert.train.trainer import Trainer


def experiment(**changes: Any) -> ExperimentConfig:
    raw: dict[str, Any] = {
        "seed": 5,
        "data": {
            "id": {"source": "digits", "limit": 400},
            "aux": {"source": "photographs", "n": 400},
            "ood": [{"source": "uniform", "n": 50}],
        },
        "model": {"name": "mlp"},
        "train": {
            "accelerator": "cpu",  # where the same seed gives the same bits
            "log_every": 2,
            "stages": [
                {"method": "ce", "epochs": 6, "lr": 0.1, "batch_size": 16, "augment": "shift"},
                {"method": "greg+", "epochs": 2, "lr": 0.01, "batch_size": 16},
            ],
        },
    }
    raw.update(changes)
    return parse_config(raw)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(experiment().data)


@pytest.fixture(scope="module")
def finished(splits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(experiment(), splits, tmp_path_factory.mktemp("runs") / "a", command="by hand")


def test_the_run_folder_holds_everything(finished: RunFolder) -> None:
    assert {p.name for p in finished.path.iterdir()} == {
        "config.yaml",
        "manifest.json",
        "model.safetensors",
        "checkpoint",
        "metrics.jsonl",
        "tensorboard",
    }
    manifest = finished.manifest
    assert manifest["command"] == "by hand"
    assert manifest["seed"] == 5
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["data"]) == {"train", "calibration", "test", "aux", "ood/uniform"}
    ce, plus = manifest["stages"]
    assert (ce["method"], ce["m_in"]) == ("ce", None)
    assert plus["m_in"] < plus["m_out"]
    weights = {"lambda_score": 0.1, "lambda_grad": 0.03}  # the defaults
    assert plus.items() > weights.items()
    assert not ce.keys() & weights.keys()
    rows = rows_of(finished.path)
    assert [r["step"] for r in rows] == list(range(1, rows[-1]["step"] + 1, 2))
    last = rows[-1]
    assert last["stage"] == "greg+"
    for name in ("loss", "ce", "score_loss", "grad_loss", "grad_norm_id", "grad_norm_aux", "lr"):
        assert isinstance(last[name], float)
    terms = [weights[f"lambda_{t}"] * last[f"{t}_loss"] for t in ("score", "grad")]
    assert last["loss"] == pytest.approx(last["ce"] + sum(terms), rel=1e-4)


def test_the_seed_alone_decides(splits: DataSplits, tmp_path: Path) -> None:
    stages = [{"method": "ce", "epochs": 1, "lr": 0.1, "batch_size": 32, "augment": "shift"}]

    def run(name: str, seed: int) -> RunFolder:
        config = experiment(train={"accelerator": "cpu", "stages": stages}, seed=seed)
        return fit(config, splits, tmp_path / name)

    one = run("a", 5)
    torch.manual_seed(999)  # global state must not matter
    before = torch.get_rng_state()
    assert same_weights(one, run("b", 5))
    assert torch.equal(before, torch.get_rng_state())  # nor be moved
    assert not same_weights(one, run("c", 6))


class Killer(Stopper):
    """Kills the process at a step."""

    def step(self, stage: str, epoch: int, values: object) -> None:
        self.done += 1
        if self.done == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def fit_until_killed(folder: Path, at: int) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)  # as the tests: sums are split by thread
    config = experiment()
    fit(config, load_data(config.data), folder, observer=Killer(at))


def test_a_killed_run_resumes_to_the_same_bits(
    finished: RunFolder, splits: DataSplits, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = FORKS.Process(target=fit_until_killed, args=(folder, 80))  # in the second stage
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert not RunFolder(folder).complete
    with pytest.raises(RunError, match="--resume"):
        fit(experiment(), splits, folder)
    resumed = fit(experiment(), splits, folder, resume=True)
    assert same_weights(finished, resumed)
    assert rows_of(resumed.path) == rows_of(finished.path)
    assert resumed.manifest["stages"] == finished.manifest["stages"]


def test_resuming_a_complete_run_changes_nothing(finished: RunFolder, splits: DataSplits) -> None:
    before = finished.weights_file.stat().st_mtime_ns
    time.sleep(0.01)
    fit(experiment(), splits, finished.path, resume=True)
    assert finished.weights_file.stat().st_mtime_ns == before


def test_resuming_with_another_configuration_is_refused(
    finished: RunFolder, splits: DataSplits
) -> None:
    with pytest.raises(RunError, match=r"another configuration: seed is 9, and was 5$"):
        fit(experiment(seed=9), splits, finished.path, resume=True)


def test_the_first_difference_is_named_by_its_path() -> None:
    one = {"a": {"b": [1, {"c": 2.0}]}, "d": None}
    assert difference(one, {"a": {"b": [1, {"c": 2.0}]}, "d": None}) is None
    assert difference(one, {"a": {"b": [1, {"c": 3}]}}) == "a.b[1].c is 2.0, and was 3"
    assert difference(one, {"a": {"b": [1]}}) == "a.b is [1, {'c': 2.0}], and was [1]"
    assert difference({}, {"d": 1}) == "d is None, and was 1"


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(finished.path, tmp_path / "copied"))


def test_resuming_on_other_data_is_refused(copied: RunFolder) -> None:
    copied.weights_file.unlink()
    raw = experiment().model_dump(mode="json")["data"]
    other = load_data(experiment(data={**raw, "seed": 1}).data)  # as if the files had changed
    with pytest.raises(RunError, match=r"data of .* changed"):
        fit(experiment(), other, copied.path, resume=True)
    assert not copied.complete


def test_a_corrupt_checkpoint_is_named_and_kept(copied: RunFolder, splits: DataSplits) -> None:
    copied.weights_file.unlink()
    half = copied.checkpoint_file.read_bytes()[: copied.checkpoint_file.stat().st_size // 2]
    copied.checkpoint_file.write_bytes(half)
    with pytest.raises(RunError, match=r"checkpoint.*last\.pt"):
        fit(experiment(), splits, copied.path, resume=True)
    assert copied.checkpoint_file.read_bytes() == half


def test_init_starts_from_another_run_or_file_and_the_manifest_names_it(
    finished: RunFolder, splits: DataSplits, tmp_path: Path
) -> None:
    before = load_file(finished.weights_file)
    foreign = tmp_path / "foreign.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in before.items()}}, foreign)
    stages = [{"method": "ce", "epochs": 1, "lr": 1e-12, "batch_size": 32}]
    for init, prefix in ((finished.path, ""), (foreign, "module.")):
        config = experiment(train={"stages": stages, "init": str(init)})
        run = fit(config, splits, tmp_path / f"run {prefix}")
        started = load_file(run.weights_file)
        for key, value in before.items():
            torch.testing.assert_close(started[key], value, rtol=1e-4, atol=1e-6)
        assert run.manifest["init"]["prefix"] == prefix
    assert finished.manifest["init"] is None


def test_a_loss_that_blows_up_stops_with_step_and_term(splits: DataSplits, tmp_path: Path) -> None:
    stages = [{"method": "energy", "epochs": 2, "lr": 1e12, "m_in": -9, "m_out": -3}]
    with pytest.raises(TrainingError, match=r"step \d+: \w+ is not finite.*checkpoint"):
        fit(experiment(train={"stages": stages}), splits, tmp_path / "a")
    assert not RunFolder(tmp_path / "a").complete


def test_a_start_that_fails_before_its_first_step_leaves_nothing(
    splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(trainer: Trainer, *_: object) -> None:
        assert trainer.run.manifest_file.exists()
        raise ConfigError("margins")

    (tmp_path / "there").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_begin_stage", failing)
        for folder in (tmp_path / "new", tmp_path / "there"):
            with pytest.raises(ConfigError, match="margins"):
                fit(experiment(), splits, folder)
            assert not folder.exists()
    with pytest.raises(Stopped):
        fit(experiment(), splits, tmp_path / "begun", observer=Stopper(2))
    assert RunFolder(tmp_path / "begun").config_file.exists()
    with pytest.raises(Stopped):  # a resumed run is left as it was found
        fit(experiment(), splits, tmp_path / "begun", resume=True, observer=Stopper(1))
    assert RunFolder(tmp_path / "begun").config_file.exists()


def test_resuming_nothing_says_so_and_begins(
    splits: DataSplits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*_: object, **given: object) -> None:
        raise UsageError(f"resume is {given['resume']}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("greg_cert.train.fit", told)
    (tmp_path / "x.yaml").write_text(dump_config(experiment()))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").touch()
    said = "greg-cert: note: --resume: there is no run in new yet, so one begins"
    for out, lines in (("new", [said]), ("other", [])):
        assert exit_code("train", "x.yaml", "--resume", "--out", out) == 2
        *found, last = capsys.readouterr().err.splitlines()
        assert [line for line in found if line.strip()] == lines
        assert last == "greg-cert: error: resume is True"


@pytest.mark.parametrize(
    ("name", "folder"), [("GReg+", "GReg+"), ("1e3", "1e3"), ("../out: λ", "_out_λ")]
)
def test_a_run_is_named_on_the_command_line(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def told(config: ExperimentConfig, _: object, path: Path, **__: object) -> None:
        asked.extend((config.name, path))
        raise UsageError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("greg_cert.train.fit", told)
    (tmp_path / "x.yaml").write_text(dump_config(experiment()))
    assert exit_code("train", "x.yaml", "--set", "name=other", "--name", name) == 2
    assert asked == [name, Path("runs") / folder]


def test_a_folder_with_other_content_is_left_alone(splits: DataSplits, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunError):
            fit(experiment(), splits, tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(splits: DataSplits, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write"):
        fit(experiment(), splits, tmp_path / "a")
