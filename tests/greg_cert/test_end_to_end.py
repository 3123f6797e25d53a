"""The user's day through the command line: by exit codes, words, JSON and the files left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import exit_code, run_command
from PIL import Image
from sklearn.datasets import load_digits

BASE = {
    "data": {
        "id": {"source": "digits", "limit": 400},
        "aux": {"source": "photographs", "n": 300},
        "ood": [
            {"source": "uniform", "n": 40, "group": "far"},
            {"source": "text", "n": 40, "group": "near"},
        ],
    },
    "model": {"name": "mlp"},
    "train": {
        "stages": [
            {"method": "ce", "epochs": 4, "lr": 0.1, "batch_size": 16},
            {"method": "energy", "epochs": 1, "lr": 0.01, "batch_size": 16},
        ]
    },
    "verify": {"samples": 10, "ood_samples": 2},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two seeds of `energy` and a run of `greg+`, trained through `--set`."""
    folder = tmp_path_factory.mktemp("day")
    (folder / "energy.yaml").write_text(yaml.safe_dump({"name": "energy", **BASE}))
    for arguments in (
        ("--out", "runs/energy"),
        ("--out", "runs/energy-1", "--set", "seed=1", "--quiet"),
        ("--out", "runs/greg+", "--set", "name=greg+", "--set", "train.stages[1].method=greg+"),
    ):
        out = arguments[1]
        done = run_command(
            "train", "energy.yaml", *arguments, cwd=folder, anew=out == "runs/energy"
        )
        assert done.returncode == 0, done.stderr
        if "--quiet" in arguments:
            assert (done.stdout, done.stderr) == ("", "")
        else:
            assert done.stdout == f"run: {out}\n"
    return folder


def answer(*arguments: str, cwd: Path) -> Any:
    """What a command says with --json."""
    done = run_command(*arguments, "--json", "--quiet", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_evaluate(work: Path) -> None:
    runs = ("runs/energy", "runs/energy-1", "runs/greg+")
    found = answer(
        *("evaluate", *runs, "--detector", "energy,ash"),
        *("--out", "eval", "--venue", "eccv"),
        cwd=work,
    )
    rows = {(r["run"], r["detector"]): r for r in found["runs"]}
    assert len(rows) == 6
    one = rows["greg+", "energy"]
    assert one["groups"] == {"uniform": "far", "text": "near"}
    assert one["near_auroc"] == one["ood"]["text"]["auroc"]
    (mean,) = [m for m in found["means"] if m["detector"] == "energy"]
    accuracies = [rows[name, "energy"]["id_accuracy"] for name in ("energy", "energy-1")]
    assert mean["seeds"] == [0, 1]
    assert mean["mean"]["id_accuracy"] == pytest.approx(np.mean(accuracies))
    assert mean["std"]["id_accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    board = pd.read_csv(work / "eval/openood/greg+-ash.csv", index_col=0)
    assert list(board.index) == ["text", "nearood", "uniform", "farood"]
    auroc = 100 * rows["greg+", "ash"]["ood"]["text"]["auroc"]
    assert board.loc["text", "AUROC"] == pytest.approx(auroc, abs=0.005)
    scores = pd.read_parquet(work / "runs/greg+/scores/energy.parquet")
    gamma = one["threshold"]
    calibration = scores[scores["part"] == "calibration"]["score"]
    assert (calibration <= gamma).mean() >= 0.95 > (calibration < gamma).mean()
    assert one["test_tpr"] == (scores[scores["part"] == "test"]["score"] <= gamma).mean()


def test_verify_and_report(work: Path) -> None:
    found = answer(
        *("verify", "runs/greg+", "--baseline", "runs/energy", "--out", "v", "--side", "both"),
        *("--set", "verify.method=crown-ibp", "--set", "samples=5"),
        cwd=work,
    )
    assert found["complete"]
    assert found["violations"] == 0
    summary = json.loads((work / "v/summary.json").read_text())
    assert summary["method"] == "crown-ibp"
    assert list(summary["runs"]) == ["energy", "greg+"]
    assert summary["provenance"]["command"].startswith("greg-cert verify runs/greg+")
    frame = pd.read_parquet(work / "v/certificates.parquet")
    assert len(frame) == 10
    for name, rows in frame.groupby("run"):
        told = found["runs"][name]["certified_radius"]["median"]
        assert told == rows["radius_certified"].median()
    clean = pd.read_parquet(work / "v/scores.parquet")
    merged = frame.merge(clean[clean["part"] == "test"], on=["run", "index"])
    np.testing.assert_allclose(merged["score_x"], merged["score_y"], atol=1e-9)
    names = {path.name for path in (work / "v/report").iterdir()}
    figures = ("radius_histogram", "certified_fraction")
    assert {f"{f}.{kind}" for f in figures for kind in ("png", "pdf")} <= names
    page = (work / "v/report/report.html").read_text()
    assert "greg-cert verify runs/greg+" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    again = ("--out", "again", "--width", "6.75", "--dpi", "100")
    done = run_command("report", "v", *again, cwd=work)
    assert done.returncode == 0, done.stderr
    with Image.open(work / "again/radius_histogram.png") as picture:
        assert picture.width == pytest.approx(675, abs=2)
    assert (work / "again/table.tex").read_text() == (work / "v/report/table.tex").read_text()


def test_predict(work: Path) -> None:
    digit = load_digits().images[0]
    Image.fromarray((digit * 255 / 16).round().astype(np.uint8)).save(work / "zero.png")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save(work / "noise.png")
    found = answer("predict", "runs/energy", "zero.png", "noise.png", "--out", "near", cwd=work)
    gamma = found["threshold"]
    for image in found["images"]:
        assert image["accepted"] == (image["score"] <= gamma)
        attack = image["attack"]
        if attack is None:
            continue
        assert image["radius_certified"] <= attack["radius"]
        assert (attack["score"] <= gamma) != image["accepted"]
        moved = np.load(work / attack["files"]["npy"], allow_pickle=False)
        with Image.open(work / image["image"]) as picture:
            start = np.asarray(picture, dtype=np.float64) / 255
        assert np.linalg.norm(moved - start) == pytest.approx(attack["radius"], rel=1e-5)


def test_a_model_of_ones_own(work: Path) -> None:
    (work / "their_code.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    described = {"data": BASE["data"], "model": {"factory": "their_code:make"}, "name": "theirs"}
    (work / "theirs.yaml").write_text(yaml.safe_dump(described))
    found = answer("evaluate", "theirs.yaml", "runs/energy", cwd=work)
    assert [r["run"] for r in found["runs"]] == ["theirs", "energy"]
    done = run_command(
        *("verify", "theirs.yaml", "--samples", "4", "--norm", "inf", "--method", "lipschitz"),
        cwd=work,
    )
    assert done.returncode == 0, done.stderr
    out = Path("theirs/verify-linf")
    for path in ("summary.json", "certificates.parquet", "report/report.html"):
        assert str(out / path) in done.stdout
        assert (work / out / path).is_file()
    summary = json.loads((work / out / "summary.json").read_text())
    assert summary["norm"] == "inf"
    assert summary["runs"]["theirs"]["samples"] == 4
    assert summary["runs"]["theirs"]["violations"] == 0
    rows = pd.read_parquet(work / out / "certificates.parquet")
    assert rows["radius_certified"].tolist() == rows["radius_lipschitz"].tolist()


def test_doctor(work: Path) -> None:
    done = run_command("doctor", "runs/greg+", "--seconds", "0.5", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "body.2" in done.stdout
    assert "256 neurons" in done.stdout  # two layers of 128


def test_configurations(work: Path) -> None:
    shown = answer("config", "show", "runs/greg+", cwd=work)
    assert shown["train"]["stages"][1]["gradient"] is True
    done = run_command("config", "check", "energy.yaml", "theirs.yaml", "none.yaml", cwd=work)
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
    assert done.stdout.count(": ok (") == len(list(work.glob("*.yaml")))
    schema = answer("config", "schema", cwd=work)
    stage = schema["$defs"]["StageConfig"]["properties"]
    assert "Passes over" in stage["epochs"]["description"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(work: Path, shell: str) -> None:
    done = run_command("--show-completion", shell, cwd=work)
    assert done.returncode == 0, done.stderr
    assert "greg" in done.stdout.lower()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from greg_cert.cli import main; sys.argv = ['greg-cert', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "tune", "verify", "evaluate", "report", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "energy.yaml"], ["runs/energy", "--resume"]),
        (["verify", "runs/nothing"], ["runs/nothing"]),
        (["verify", "runs/energy", "--norm", "1"], ["--norm", "'1'"]),
        (["verify", "runs/energy", "--max-radius", "-1"], ["--max-radius", "-1"]),
        (["verify", "runs/energy", "--method", "gradient"], ["--method", "'gradient'"]),
        (["verify", "runs/energy", "--until-share", "1.5"], ["--until-share", "1.5"]),
        (["verify", "runs/energy", "--seconds-per-sample", "0"], ["--seconds-per-sample", "0"]),
        (
            ["verify", "runs/energy", "--budget", "9", "--seconds-per-sample", "1"],
            ["--budget or --seconds-per-sample", "got both"],
        ),
        (["report", "runs"], ["runs/summary.json"]),
        (["report", "v-none", "--run", "x"], ["v-none: expected a verification folder"]),
        (["demo", "--out", "."], ["--out"]),
        (["doctor", "runs/nothing"], ["runs/nothing"]),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    work: Path,
    arguments: list[str],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    assert exit_code(*arguments) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    for part in said:
        assert part in lines[0]


def test_unknown_options_are_exit_2(tmp_path: Path) -> None:
    assert run_command("verify", cwd=tmp_path).returncode == 2
    assert run_command("train", "x.yaml", "--epochs", "3", cwd=tmp_path).returncode == 2
