"""A penalty that is a small part of the loss says so, once a stage, and the same after a stop."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import Stopped, Stopper, rows_of

from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import PenaltyWarning
from greg_cert.runs.records import RunFolder
from greg_cert.runs.training_log import TrainingLog
from greg_cert.stages import StageConfig
from greg_cert.train import fit
from greg_cert.train.gradient_notes import penalty_share


def experiment(**stage: Any) -> ExperimentConfig:
    raw = {
        "data": {
            "id": {"source": "digits", "limit": 200},
            "aux": {"source": "photographs", "n": 100},
        },
        "model": {"name": "mlp"},
        "train": {
            **{"accelerator": "cpu", "log_every": 2, "checkpoint_every": 3},
            "stages": [
                {"method": "ce", "epochs": 3, "lr": 0.1, "batch_size": 20},
                {"method": "greg", "epochs": 2, "lr": 0.01, "batch_size": 20, **stage},
            ],
        },
    }
    return parse_config(raw)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(experiment().data)


def log(**columns: list[float]) -> TrainingLog:
    values = {name: np.array(column) for name, column in columns.items()}
    steps = np.arange(len(values["loss"])) + 1
    return TrainingLog(Path("metrics.jsonl"), steps, ("greg",) * len(steps), (0,), values)


def test_the_share_by_hand() -> None:
    nan = float("nan")
    rows = log(loss=[99.0, 2.0, 4.0, 1.0], grad_loss=[99.0, 0.5, 0.5, 0.1])
    stage = StageConfig(method="greg", epochs=1, lr=0.1, lambda_grad=2.0)
    assert penalty_share(rows, 1, stage) == pytest.approx(2 * 1.1 / 7, abs=5e-4)
    assert penalty_share(rows, 4, stage) is None
    # Every second step: twice the weight where it is, so the same mean over all steps.
    rows = log(loss=[1.0 + 2 * 2 * 0.5, 1.0], grad_loss=[0.5, nan])
    stage = stage.model_copy(update={"penalty_every": 2})
    assert penalty_share(rows, 0, stage) == pytest.approx(2 * 0.5 / (2 * 0.5 + 1.0), abs=5e-4)
    assert penalty_share(log(loss=[1.0], grad_loss=[nan]), 0, stage) is None


def test_a_small_penalty_warns_once_and_stands_in_the_manifest(
    splits: DataSplits, tmp_path: Path
) -> None:
    config = experiment(scaling="reference")
    with pytest.warns(PenaltyWarning, match=r"stages\[1\].*lambda_grad = 1 .*reference") as seen:
        run = fit(config, splits, tmp_path / "run")
    assert len(seen) == 1
    ce, greg = run.manifest["stages"]
    rows = rows_of(run.path, "greg")
    first = [row for row in rows if row["epoch"] == 1]
    mean = {k: float(np.mean([row[k] for row in first])) for k in ("grad_loss", "loss")}
    assert "penalty_share" not in ce
    assert greg["penalty_share"] == pytest.approx(mean["grad_loss"] / mean["loss"], rel=5e-3)
    assert 0 < greg["penalty_share"] < 0.01


def test_where_no_sample_is_smoothed_it_says_that(splits: DataSplits, tmp_path: Path) -> None:
    config = experiment(m_in=-1000.0, m_out=1000.0, epochs=1, lambda_score=0.0)
    with pytest.warns(PenaltyWarning, match="is 0 % of the loss so far: no sample is past"):
        fit(config, splits, tmp_path / "run")


def test_stopped_in_the_epoch_the_share_is_the_same(splits: DataSplits, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a large one says nothing
        config = experiment(penalty_every=2, lambda_grad=1.0)
        whole = fit(config, splits, tmp_path / "whole")
        at = 4 * (len(splits.train) // 20) - 3
        with pytest.raises(Stopped):
            fit(config, splits, tmp_path / "cut", observer=Stopper(at))
        cut = fit(config, splits, tmp_path / "cut", resume=True)
    shares = [RunFolder(r.path).manifest["stages"][1]["penalty_share"] for r in (whole, cut)]
    assert shares[0] == shares[1] > 0.01
