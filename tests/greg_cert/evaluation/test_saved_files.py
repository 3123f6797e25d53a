"""Saved scores and decisions count only as they were written; else they are computed anew."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flips
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import exit_code
from torch import nn

from greg_cert.config import parse_config
from greg_cert.data import DataSplits, load_data
from greg_cert.data.tensors import splits_from_tensors
from greg_cert.errors import DamagedFileWarning, UncheckedFileWarning
from greg_cert.evaluation import Evaluator
from greg_cert.evaluation.decision import decision_of
from greg_cert.evaluation.store import ScoreStore
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit

IDENTITY = {"detector": "energy", "weights": "ab"}
PARTS = {
    "test": {"score": np.array([-3.5, -0.0, 1e-300])},
    "ood/a": {"score": np.array([0.5, 2.5])},
}


def made() -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(90, 1, 4, 4, generator=generator)
    labels = torch.arange(90) % 3
    x[torch.arange(90), 0, 0, labels] = 1.0
    train, test = (x[:60], labels[:60]), (x[60:], labels[60:])
    return splits_from_tensors(train, test, {"off": 0.2 * x[30:60].flip(-1)})


def model() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(10 * torch.eye(3, 16))
    return net


def rewrite(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame], keep: bool = True) -> None:
    """Change the rows and keep the metadata, or drop the digest alone."""
    table = pq.read_table(file)
    metadata = dict(table.schema.metadata)
    if not keep:
        del metadata[b"greg-cert digest"]
    changed = pa.Table.from_pandas(change(table.to_pandas()), preserve_index=False)
    pq.write_table(changed.replace_schema_metadata(metadata), file)


def test_a_flipped_bit_in_saved_scores_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    path = store.write("energy", IDENTITY, PARTS)
    whole = store.read("energy", IDENTITY)
    assert repr(whole) == repr(PARTS)
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for damaged in flips.flipped(content, 12):
            path.write_bytes(damaged)
            assert repr(store.read("energy", IDENTITY)) in (repr(whole), "{}")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.assign(score=-f["score"]),
        lambda f: f.assign(score=np.nextafter(f["score"], 9.0)),
        lambda f: f.assign(part=f["part"].replace("test", "calibration")),
        lambda f: f.iloc[:-1],
        lambda f: f.assign(index=f["index"] + 1),
        None,
    ],
)
def test_changed_or_damaged_scores_are_computed_anew(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame] | None
) -> None:
    whole = Evaluator(model(), made(), scores=tmp_path).eval_ood()
    file, said = tmp_path / "energy.parquet", "field digest"
    good = file.read_bytes()
    if change is None:
        file.write_bytes(good[: len(good) // 2])
        said = "expected a whole"
    else:
        rewrite(file, change)
    with pytest.warns(DamagedFileWarning, match=rf"energy\.parquet: {said}.*computed anew"):
        found = Evaluator(model(), made(), scores=tmp_path).eval_ood()
    assert found.equals(whole)
    assert file.read_bytes() == good


def test_scores_of_an_earlier_version_are_read_with_one_line(tmp_path: Path) -> None:
    whole = Evaluator(model(), made(), scores=tmp_path).eval_ood()
    rewrite(tmp_path / "energy.parquet", lambda f: f, keep=False)
    with pytest.warns(UncheckedFileWarning, match=r"energy\.parquet was written by an") as told:
        assert Evaluator(model(), made(), scores=tmp_path).eval_ood().equals(whole)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("energy", lambda f: f.assign(score=np.nan)),
        ("energy", lambda f: f.iloc[:-1]),
        ("predictions", lambda f: f.assign(label=f["label"][::-1].to_numpy())),
        ("predictions", lambda f: f.assign(predicted=3.0)),
        ("predictions", lambda f: f.assign(confidence=1.5)),
        ("predictions", lambda f: f.iloc[:-1]),
    ],
)
def test_impossible_scores_of_an_earlier_version_are_computed_anew(
    tmp_path: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    whole = Evaluator(model(), made(), scores=tmp_path)
    expected = (whole.eval_ood().to_dict(), whole.eval_acc(), whole.predictions.calibration_error)
    rewrite(tmp_path / f"{name}.parquet", change, keep=False)
    again = Evaluator(model(), made(), scores=tmp_path)
    with pytest.warns(UncheckedFileWarning):
        found = (again.eval_ood().to_dict(), again.eval_acc(), again.predictions.calibration_error)
    assert found == expected


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    stage = {"method": "ce", "epochs": 1, "lr": 0.1, "batch_size": 20}
    data = {"id": {"source": "digits", "limit": 200}, "ood": [{"source": "uniform", "n": 30}]}
    raw = {"data": data, "model": {"name": "mlp"}, "train": {"stages": [stage]}}
    config = parse_config(raw)
    return fit(config, load_data(config.data), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(trained.path, tmp_path / "run"))


def test_a_decision_counts_as_it_was_written(run: RunFolder) -> None:
    whole = decision_of(run, 0.95)
    file = run.path / "scores" / "decision.json"
    good = json.loads(file.read_text())
    assert decision_of(run, 0.95) == whole
    changed = {**good, "decision": {**good["decision"], "threshold": -whole.threshold}}
    for damage in (json.dumps(changed), file.read_text()[:-40], "[]", "1"):
        file.write_text(damage)
        with pytest.warns(DamagedFileWarning, match=r"decision\.json: .*; computed anew"):
            assert decision_of(run, 0.95) == whole
        assert json.loads(file.read_text()) == good
    del good["digest"]
    file.write_text(json.dumps(good))
    with pytest.warns(UncheckedFileWarning, match=r"decision\.json was written by an earlier"):
        assert decision_of(run, 0.95) == whole


def test_a_flipped_bit_in_a_decision_changes_nothing(run: RunFolder) -> None:
    whole = decision_of(run, 0.95)
    file = run.path / "scores" / "decision.json"
    content = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for damaged in flips.flipped(content, 12):
            file.write_bytes(damaged)
            assert decision_of(run, 0.95) == whole


def test_commands_refuse_a_damaged_run_in_one_line(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("score: energy", "score: max_logit"))
    assert exit_code("evaluate", str(run.path)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"greg-cert: error: {run.config_file}: field digests.config.yaml")


def test_commands_say_once_that_a_run_is_of_an_earlier_version(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: dict[str, Any] = json.loads(run.manifest_file.read_text())
    del manifest["digest"], manifest["digests"]
    run.manifest_file.write_text(json.dumps(manifest))
    assert exit_code("evaluate", str(run.path)) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert notes == [
        f"greg-cert: note: {run.path} was written by an earlier version and holds no digest: "
        "its content cannot be checked"
    ]
