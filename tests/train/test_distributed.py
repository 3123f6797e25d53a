"""Two processes over gloo against one: the same loss on the joined batch, and the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import FORKS, launched, speak_into
from safetensors.torch import load_file
from trained import rows_of

from greg_cert.config import ExperimentConfig, dump_config, parse_config
from greg_cert.data import load_data
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit

_SCRIPT = """
import sys
from pathlib import Path
import torch, yaml
torch.set_num_threads(1)
from greg_cert.config import parse_config
from greg_cert.data import load_data
from greg_cert.train import fit
config = parse_config(yaml.safe_load(Path(sys.argv[1]).read_text()))
fit(config, load_data(config.data), Path(sys.argv[2]))
"""


def experiment(devices: int, **changes: Any) -> ExperimentConfig:
    stages = [
        {"method": "ce", "epochs": 4, "lr": 0.1, "batch_size": 20, "augment": "shift"},
        {
            **{"method": "energy", "epochs": 1, "lr": 0.02, "batch_size": 20},
            **{"augment": "shift_flip", "lambda_lipschitz": 0.02, "clip_grad": 4.0},
        },
        {
            **{"method": "greg+", "epochs": 1, "lr": 0.02, "batch_size": 20, "augment": "shift"},
            **{"scaling": "reference", "lambda_grad": 20.0},
        },
        {
            **{"method": "poem+grad", "epochs": 1, "lr": 2e-4, "batch_size": 20, "pool": 200},
            **{"optimizer": "adam", "weight_decay": 0.0},
        },
    ]
    raw = {
        "data": {
            "id": {"source": "digits", "limit": 400},
            "aux": {"source": "photographs", "n": 400},
        },
        "model": {"name": "cnn_small"},
        "train": {
            "log_every": 1,
            "accelerator": "cpu",
            "devices": devices,
            "stages": stages,
            **changes,
        },
    }
    return parse_config(raw)


def launch(config: ExperimentConfig, folder: Path) -> subprocess.CompletedProcess[str]:
    """Train by two processes of PyTorch's launcher, which begin with their imports."""
    (folder / "c.yaml").write_text(dump_config(config))
    (folder / "script.py").write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-endpoint", "localhost:0", "--rdzv-backend", "c10d"]
    return subprocess.run(
        [*command, str(folder / "script.py"), str(folder / "c.yaml"), str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def refused(config: ExperimentConfig, folder: Path) -> list[str]:
    """What each of two processes says that are started as by the launcher, and refuse."""
    processes = []
    for rank, environment in enumerate(launched(2)):
        files = [folder / f"stdout-{rank}", folder / f"stderr-{rank}"]
        processes.append(FORKS.Process(target=_fit, args=(config, folder, environment, files)))
        processes[-1].start()
    for process in processes:
        process.join(240)
        assert process.exitcode not in (None, 0)
    return [(folder / f"stderr-{rank}").read_text() for rank in range(2)]


def _fit(
    config: ExperimentConfig, folder: Path, environment: dict[str, str], files: list[Path]
) -> None:
    speak_into(*files)
    torch.set_num_threads(1)
    os.environ.update(environment)
    fit(config, load_data(config.data), folder / "run")


def test_two_processes_do_what_one_does_on_the_joined_batch(tmp_path: Path) -> None:
    done = launch(experiment(2), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    config = experiment(1)
    runs = [fit(config, load_data(config.data), tmp_path / "alone"), RunFolder(tmp_path / "run")]
    alone, together = (rows_of(run.path) for run in runs)
    assert len(alone) == len(together) > 20
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            if isinstance(value, float):
                assert two[key] == pytest.approx(value, rel=2e-3, abs=2e-3), (key, one["step"])
    weights = [load_file(run.weights_file) for run in runs]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3)
    assert runs[1].manifest["processes"] == 2


def test_an_error_of_the_first_process_stops_them_all(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    for said in refused(experiment(2), tmp_path):
        assert "RunError: out: expected a new or empty folder" in said
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious.txt"]


def test_processes_that_the_configuration_does_not_know_of_are_refused(tmp_path: Path) -> None:
    for said in refused(experiment(1), tmp_path):
        assert "expected the 2 processes that were started" in said
    assert not (tmp_path / "run").exists()
