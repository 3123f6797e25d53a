"""`greg-cert tune` as a user meets it: rows, files, what failed, and that no test set is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import error_of, exit_code
from PIL import Image

from greg_cert.config import parse_config
from greg_cert.data import load_data
from greg_cert.errors import RunError
from greg_cert.files import file_name
from greg_cert.report.wording import MISSING
from greg_cert.runs.records import RunFolder
from greg_cert.runs.subjects import common_data
from greg_cert.runs.tuned_runs import NUMBERS

pytestmark = pytest.mark.usefixtures("hasty")
Command = Callable[..., int]
FILES = ["tune.json", "tune.csv", "tune.md", "tradeoff.png", "tradeoff.pdf"]
# Neither is there, so whoever reads test data fails.
NO_TESTS = {
    "id_test": {"source": "array", "path": "/nowhere/test.npz"},
    "ood": [{"source": "folder", "path": "/nowhere/ood"}],
}


def experiment(**data: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "data": {"id": {"source": "digits", "limit": 400}, **data},
        "model": {"name": "mlp"},
        "train": {
            "stages": [
                {"method": "ce", "epochs": 2, "lr": 0.1, "batch_size": 16},
                {"method": "ce", "epochs": 1, "lr": 0.02, "batch_size": 16},
            ]
        },
    }


def with_outliers() -> dict[str, Any]:
    found = experiment(**NO_TESTS, aux={"source": "uniform", "n": 200})
    found["train"]["stages"][1] |= {"method": "energy", "m_in": -9, "m_out": 0}
    return found


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `tune` in this process; gives the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **config: Any) -> int:
        if config:
            Path("tiny.yaml").write_text(yaml.safe_dump(config))
        return exit_code("tune", "tiny.yaml", "--samples", "4", "--method", "crown", *arguments)

    return run


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "tune.json").read_text())
    return list(found["rows"])


def test_rows_files_a_picture_and_a_value_that_fails(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = "train.stages[1].lr"
    arguments = ("--for", setting, "--values", "0.02,1e15", "--held-out", "0.25")
    assert command(*arguments, **with_outliers()) == 0
    out, said = Path("tune/tiny"), capsys.readouterr().out
    assert f"setting: {setting}\n" in said
    assert "lr = 1e15: training stopped at step" in said
    assert said.splitlines()[-5:] == [str(out / name) for name in FILES]
    record = json.loads((out / "tune.json").read_text())
    assert (record["schema"], record["setting"], record["keys"]) == (1, setting, [setting])
    assert record["environment"]["versions"]["torch"]
    assert record["command"].startswith("greg-cert tune tiny.yaml")
    rows = record["rows"]
    assert [row["value"] for row in rows] == ["0.02", "1e15"]
    failed = rows.pop(1)
    assert "not finite" in failed["error"]
    assert failed["accuracy"] is None
    assert set(failed) == {"value", "seed", "run", "error", *NUMBERS}
    for row in rows:
        run = RunFolder(Path(row["run"]))
        assert run.path == out / "runs" / row["value"]
        assert row["error"] is None
        assert run.manifest["split_sizes"]["aux"] == 150
        splits = load_data(run.config.data, tests=False)
        assert splits.calibration.labels is not None
        with torch.no_grad():
            predicted = run.load_model()(splits.calibration.pixels()).argmax(1)
        right = predicted == splits.calibration.labels
        assert row["accuracy"] == right.double().mean().item()
        assert 0 <= row["fpr"] <= 1
        assert 0 <= row["auroc"] <= 1
        assert row["samples"] == 4
        assert 0 < row["radius_certified"] <= row["radius_attack"]
        assert row["train_cpu_seconds"] > 0
    table = list(csv.DictReader(io.StringIO((out / "tune.csv").read_text())))
    assert [line[setting] for line in table] == ["0.02", "1e15"]
    assert [line["accuracy"] for line in table][1] == ""
    assert float(table[0]["accuracy"]) == rows[0]["accuracy"]
    markdown = (out / "tune.md").read_text()
    assert f"| 1e15 | {MISSING} |" in markdown
    assert "AUROC" in markdown
    with Image.open(out / "tradeoff.png") as image:
        assert image.width == 2025
    assert (out / "tradeoff.pdf").read_bytes().startswith(b"%PDF")


def test_going_on_trains_and_measures_what_is_missing_alone(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--for", "weight_decay", "--values", "0.01", "--seeds", "2", "--out", "out")
    assert command(*arguments, **experiment(ood=NO_TESTS["ood"])) == 0
    assert "AUROC" not in capsys.readouterr().out  # there is nothing that could stand for OOD data
    out = Path("out")
    rows = rows_of(out)
    assert [(row["value"], row["seed"]) for row in rows] == [("0.01", 0), ("0.01", 1)]
    assert [RunFolder(Path(row["run"])).config.seed for row in rows] == [0, 1]
    assert "±" in (out / "tune.md").read_text()

    assert command(*arguments) == 2
    assert "--out: expected a new or empty folder" in capsys.readouterr().err

    paths = [out / "runs" / name for name in ("0.01-seed0", "0.01-seed1")]
    weights = [(path / "model.safetensors").stat().st_mtime_ns for path in paths]
    (paths[1] / "tuning.json").unlink()
    assert command(*arguments, "--resume", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(out / name) for name in FILES]
    assert [(path / "model.safetensors").stat().st_mtime_ns for path in paths] == weights
    assert told["rows"] == rows_of(out)
    own = {"train_cpu_seconds", "certify_cpu_seconds"}
    for k, (row, before) in enumerate(zip(told["rows"], rows, strict=True)):
        assert (row == before) == (k != 1)
        assert all(row[name] == before[name] for name in row if name not in own)
    assert told["rows"][1]["train_cpu_seconds"] is None  # its note is gone, and nothing was trained

    with pytest.raises(RunError, match="one of `greg-cert tune`"):
        common_data([RunFolder(paths[0])], load_data(parse_config(experiment()).data))


def test_no_value_that_can_be_trained(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--for", "lr", "--values", "1e15", **experiment()) == 2
    captured = capsys.readouterr()
    assert "lr: no value could be trained, the first because of: training stopped" in captured.err
    assert rows_of(Path("tune/tiny"))[0]["error"].startswith("training stopped")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--for", "lambda_lipshitz", "--values", "1"], "did you mean 'lambda_lipschitz'"),
        (["--for", "lr", "--values", "1,,2"], "--values: expected values"),
        (["--for", "lr", "--values", "1", "--held-out", "1"], "--held-out: expected a share"),
        (["--for", "lr", "--values", "1", "--method", "smoothing"], "--method: expected a proof"),
        (["--for", "lr", "--values", "1", "--method", "crwn"], "--method: "),
        (["--for", "train.devices", "--values", "1,2"], "train.devices: expected 1, as tune is"),
        (["--for", "train.init", "--values", "a/b,a?b"], "would serve two of them"),
        (["--for", "lr", "--values", "1", "--set", "train.lrr=1"], "did you mean 'train.lr'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    command: Command, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert command(*arguments, **experiment()) == 2
    assert said in error_of(capsys.readouterr().err)
    assert not Path("tune").exists()


def test_several_processes_are_refused(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("--for", "lr", "--values", "1", **experiment()) == 2
    assert "tune: expected one process" in capsys.readouterr().err


def test_values_as_names_of_folders() -> None:
    names = [file_name(value) for value in ("0.01", "-1e-3", "../up", "a b", ".", "null")]
    assert names == ["0.01", "-1e-3", "_up", "a_b", "_", "null"]
