"""The command line as a user meets it: in processes of its own, by exit codes, words and files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from commands import run_command

from greg_cert.cli import main


def tiny(name: str, method: str) -> dict[str, object]:
    return {
        "name": name,
        "data": {
            "id": {"source": "digits", "limit": 400},
            "aux": {"source": "photographs", "n": 400},
            "ood": [{"source": "uniform", "n": 50}],
        },
        "model": {"name": "cnn_small"},
        "train": {
            "stages": [
                {"method": "ce", "epochs": 5, "lr": 0.1, "batch_size": 16},
                {"method": method, "epochs": 1, "lr": 0.01, "batch_size": 16},
            ]
        },
        "verify": {"samples": 6, "engine": "native", "budget": 1000},
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, trained through the command line."""
    folder = tmp_path_factory.mktemp("work")
    for name, method in (("plain", "energy"), ("smooth", "greg+")):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tiny(name, method)))
        done = run_command("train", f"{name}.yaml", cwd=folder, anew=name == "plain")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"run: runs/{name}\n"
    return folder


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from greg_cert.cli import main; sys.argv = ['greg-cert', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "tune", "verify", "evaluate", "report", "doctor"):
        assert command in done.stdout


def test_verify_compares_and_leaves_every_file(trained: Path) -> None:
    done = run_command(
        "verify", "runs/smooth", "--baseline", "runs/plain", "--out", "v", cwd=trained
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((trained / "v/summary.json").read_text())
    assert list(summary["runs"]) == ["plain", "smooth"]
    assert all(r["violations"] == 0 and r["samples"] == 6 for r in summary["runs"].values())
    assert summary["provenance"]["command"].startswith("greg-cert verify runs/smooth")
    frame = pd.read_parquet(trained / "v/certificates.parquet")
    assert len(frame) == 12
    names = {p.name for p in (trained / "v/report").iterdir()}
    figures = ("radius_histogram", "certified_fraction")
    assert {f"{f}.{kind}" for f in figures for kind in ("png", "pdf")} <= names
    assert {"table.md", "table.tex", "report.html"} <= names
    for path in ("v/summary.json", "v/certificates.parquet", "v/report/report.html"):
        assert path in done.stdout
    again = run_command("report", "v", "--out", "w", "--width", "6.75", cwd=trained)
    assert again.returncode == 0, again.stderr
    assert (trained / "w/report.html").is_file()


def test_options_override_the_configuration(trained: Path) -> None:
    done = run_command(
        *("verify", "runs/plain", "--samples", "5", "--norm", "inf", "--method", "lipschitz"),
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((trained / "runs/plain/verify-linf/summary.json").read_text())
    assert summary["norm"] == "inf"
    assert summary["runs"]["plain"]["samples"] == 5
    rows = pd.read_parquet(trained / "runs/plain/verify-linf/certificates.parquet")
    assert rows["radius_certified"].tolist() == rows["radius_lipschitz"].tolist()


def test_evaluate_and_doctor_answer(trained: Path) -> None:
    done = run_command("evaluate", "runs/plain", "runs/smooth", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "uniform" in done.stdout
    done = run_command("doctor", "runs/smooth", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "body.2" in done.stdout
    assert "448 neurons" in done.stdout  # 16·4·4 + 32·2·2 + 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "plain.yaml"], ["runs/plain", "--resume"]),
        (["verify", "runs/nothing"], ["runs/nothing"]),
        (["verify", "runs/plain", "--norm", "1"], ["--norm", "'1'"]),
        (["verify", "runs/plain", "--max-radius", "-1"], ["--max-radius", "-1"]),
        (["verify", "runs/plain", "--method", "gradient"], ["--method", "'gradient'"]),
        (["verify", "runs/plain", "--until-share", "1.5"], ["--until-share", "1.5"]),
        (["verify", "runs/plain", "--seconds-per-sample", "0"], ["--seconds-per-sample", "0"]),
        (
            ["verify", "runs/plain", "--budget", "9", "--seconds-per-sample", "1"],
            ["--budget or --seconds-per-sample", "got both"],
        ),
        (["report", "runs"], ["runs/summary.json"]),
        (["demo", "--out", "."], ["--out"]),
        (["doctor", "runs/nothing"], ["runs/nothing"]),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    trained: Path,
    arguments: list[str],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr("sys.argv", ["greg-cert", *arguments])
    with pytest.raises(SystemExit) as stopped:  # in this process: importing torch takes seconds
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, (out, err)
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    for part in said:
        assert part in lines[0]


def test_unknown_options_are_exit_2(tmp_path: Path) -> None:
    assert run_command("verify", cwd=tmp_path).returncode == 2
    assert run_command("train", "x.yaml", "--epochs", "3", cwd=tmp_path).returncode == 2
