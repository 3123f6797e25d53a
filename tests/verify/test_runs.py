"""Verifying run folders: pairing, contracts of the two files, audits and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from greg_cert.certificates.format import STATUSES
from greg_cert.config import ExperimentConfig, VerifyConfig, parse_config
from greg_cert.data import load_data
from greg_cert.errors import RunError
from greg_cert.metrics import fpr_at_tpr, threshold_at_tpr
from greg_cert.report import load_results
from greg_cert.runs.records import RunFolder
from greg_cert.scores import energy
from greg_cert.train import fit
from greg_cert.verify.attack.pgd import attack_within
from greg_cert.verify.attack.plan import AttackPlan, AttackResult
from greg_cert.verify.radius.linear import LinearRadius
from greg_cert.verify.run.runs import verify_runs
from greg_cert.verify.scorer import Margin, score_function

SETTINGS = VerifyConfig(samples=24, engine="native", seed=4, budget=1, options={"rounds": 4})


def experiment(name: str, lr: float, **data: Any) -> ExperimentConfig:
    return parse_config(
        {
            "name": name,
            "data": {
                "id": {"source": "digits", "limit": 400},
                "ood": [{"source": "uniform", "n": 40}, {"source": "faces"}],
                **data,
            },
            "model": {"name": "mlp"},
            "train": {"stages": [{"method": "ce", "epochs": 3, "lr": lr, "batch_size": 16}]},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("runs")
    configs = [experiment("slow", 0.02), experiment("fast", 0.1)]
    return {c.title: fit(c, load_data(c.data), folder / c.title) for c in configs}


@pytest.fixture(scope="module")
def verified(trained: dict[str, RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verified")
    verify_runs([trained["fast"]], SETTINGS, out, baseline=trained["slow"], command="typed")
    return out


def test_the_summary_keeps_the_contract_and_agrees_with_the_rows(verified: Path) -> None:
    summary = json.loads((verified / "summary.json").read_text())
    frame = pd.read_parquet(verified / "certificates.parquet")
    slow, fast = (frame[frame["run"] == name] for name in ("slow", "fast"))
    assert slow["index"].tolist() == fast["index"].tolist() == sorted(set(slow["index"]))
    assert slow["label"].tolist() == fast["label"].tolist()
    assert (summary["schema"], summary["norm"], summary["tpr"]) == (1, 2.0, 0.95)
    assert list(summary["runs"]) == ["slow", "fast"]
    assert summary["baseline"] == "slow"
    assert summary["provenance"]["command"] == "typed"
    folders = summary["provenance"]["folders"]
    assert list(folders) == [Path(folder).name for folder in folders.values()] == ["slow", "fast"]
    assert all(Path(folder).is_absolute() for folder in folders.values())
    for name, run in summary["runs"].items():
        rows = frame[frame["run"] == name]
        assert run["samples"] == 24
        assert run["violations"] == 0
        for kind in ("certified", "gradient", "lipschitz"):
            median = float(np.median(rows[f"radius_{kind}"]))
            assert run[f"{kind}_radius"]["median"] == pytest.approx(median)
        assert run["status"] == {s: int((rows["status"] == s).sum()) for s in STATUSES}
        for key in ("method", "id_accuracy", "threshold", "fpr95", "auroc", "seconds"):
            assert key in run


def test_several_methods_at_once_are_written_and_read(
    trained: dict[str, RunFolder], tmp_path: Path
) -> None:
    settings = VerifyConfig(samples=3, method=("lipschitz", "crown"), cuts=0)
    verify_runs([trained["fast"]], settings, tmp_path)
    summary = load_results(tmp_path).summary
    assert (summary.method, summary.methods) == (["lipschitz", "crown"], ["crown", "lipschitz"])


def test_threshold_and_metrics_follow_from_the_weights(
    verified: Path, trained: dict[str, RunFolder]
) -> None:
    """Recomputed from the run folder without verify/: γ from calibration, never from test."""
    summary = json.loads((verified / "summary.json").read_text())
    splits = load_data(trained["fast"].config.data)
    model = trained["fast"].load_model().double()

    def scores(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return energy(model(images.double()))

    run = summary["runs"]["fast"]
    gamma = threshold_at_tpr(scores(splits.calibration.pixels()))
    assert run["threshold"] == pytest.approx(gamma, rel=1e-12)
    test = scores(splits.test.pixels())
    fpr = [fpr_at_tpr(test, scores(s.pixels())) for s in splits.ood.values()]
    assert run["fpr95"] == pytest.approx(np.mean(fpr))
    rows = pd.read_parquet(verified / "certificates.parquet").query("run == 'fast'")
    picked = test[torch.tensor(rows["index"].to_numpy())]
    np.testing.assert_allclose(rows["score"], picked.numpy(), rtol=1e-9)
    assert (rows["status"] == "rejected").tolist() == (picked > gamma).tolist()


def test_an_unsound_certificate_is_counted_as_a_violation(
    trained: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LinearRadius.__call__

    def boastful(self: LinearRadius, *args: Any) -> torch.Tensor:
        return 4.0 * honest(self, *args)

    def nothing(detector: Any, plan: Any, most: float, x: torch.Tensor, *_: Any) -> AttackResult:
        return AttackResult(torch.full_like(x.flatten(1)[:, 0], torch.inf), torch.zeros_like(x))

    monkeypatch.setattr(LinearRadius, "__call__", boastful)
    # The audit has an attack of its own.
    monkeypatch.setattr("greg_cert.verify.certifier.nearest_attack", nothing)
    done = verify_runs([trained["fast"]], SETTINGS, tmp_path)
    (run,) = done.runs
    rows = run.frame
    claimed = int((rows["radius_certified"] > 0).sum() + rows["radius_refuted"].notna().sum())
    assert claimed > 10
    assert run.summary["violations"] == done.violations >= 0.8 * claimed
    broken = rows[rows["status"] == "contradicted"]
    assert len(broken) == done.violations == run.summary["status"]["contradicted"]
    assert (broken["radius_certified"] == 0).all()
    assert (broken["radius_best"] == 0).all()
    assert (broken["radius_lipschitz"] == 0).all()
    assert (broken["radius_attack"] <= broken["radius_refuted"]).all()
    assert broken["violation"].all()
    assert not rows.drop(broken.index)["violation"].any()
    assert done.worst is not None
    worst = rows.set_index("index").loc[done.worst["index"]]
    assert done.worst["crossed"] <= done.worst["radius"] == worst["radius_refuted"]
    # The report reads it, and takes the proofs back.
    assert load_results(tmp_path).frame["violation"].sum() == done.violations


def test_runs_of_different_data_are_refused(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    config = experiment("other", 0.1, seed=7)
    other = fit(config, load_data(config.data), tmp_path / "other")
    with pytest.raises(RunError, match=r"split of .*other"):
        verify_runs([trained["fast"], other], SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    config = experiment("cut", 0.1)
    run = fit(config, load_data(config.data), tmp_path / "cut")
    whole = run.weights_file.read_bytes()
    run.weights_file.write_bytes(whole[:100])
    with pytest.raises(RunError, match=r"model\.safetensors"):
        verify_runs([run], SETTINGS, tmp_path / "out")
    run.weights_file.unlink()
    with pytest.raises(RunError, match="--resume"):
        verify_runs([run], SETTINGS, tmp_path / "out")
    with pytest.raises(RunError, match="nowhere"):
        verify_runs([RunFolder(tmp_path / "nowhere")], SETTINGS, tmp_path / "out")


@pytest.mark.parametrize("norm", ["2", "inf"])
def test_trained_networks_hold_what_is_certified(
    trained: dict[str, RunFolder], tmp_path: Path, norm: str
) -> None:
    """By both engines, CROWN and Lipschitz, under an attack of other seeds than the audit's."""
    changes = {"norm": norm, "max_radius": 0.5 if norm == "2" else 0.1, "samples": 10}
    changes |= {"method": "crown", "cuts": 0}  # without cuts both engines prove the same
    found = {}
    for engine in ("native", "auto-lirpa"):
        settings = SETTINGS.model_copy(update={**changes, "engine": engine})
        for done in verify_runs(list(trained.values()), settings, tmp_path / engine).runs:
            assert done.summary["violations"] == 0
            rows = done.frame[done.frame["status"] == "certified"]
            assert len(rows) >= 6
            found[engine, done.name] = rows["radius_certified"].to_numpy()
            run = trained[done.name]
            model = run.load_model()
            images = load_data(run.config.data).test.pixels(rows["index"].tolist()).double()
            plan = AttackPlan(
                Margin(float(rows["threshold"].iloc[0]), "id"), float(norm), seed=99, restarts=4
            )
            for column in ("radius_certified", "radius_lipschitz"):
                radius = torch.tensor(rows[column].to_numpy())
                hit, _ = attack_within(score_function(model), images, radius, plan)
                assert not hit.any()
    for name in trained:  # two implementations of the same bounds
        np.testing.assert_allclose(found["native", name], found["auto-lirpa", name], rtol=0.05)
