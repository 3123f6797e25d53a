"""Every method trains through the same loop; what each presets, and what it leaves in a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from trained import rows_of

from greg_cert.config import ExperimentConfig, dump_config, parse_config
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import ConfigError
from greg_cert.evaluation import evaluate_model
from greg_cert.runs.inference import logits_of
from greg_cert.scores import max_softmax
from greg_cert.stages import Method, StageConfig
from greg_cert.train import fit
from greg_cert.train.objective.step import Batch, Objective
from greg_cert.verify.run.runs import verify_runs

DATA = {
    "id": {"source": "digits", "limit": 400},
    "aux": {"source": "photographs", "n": 500},
    "ood": [{"source": "textures", "n": 60}],
}
MARGINS = {"m_in": -5.0, "m_out": -2.0}
METHODS = [m for m in get_args(Method) if m != "ce"]


def experiment(stage: dict[str, Any], epochs: int = 8, **train: Any) -> ExperimentConfig:
    before = {"method": "ce", "epochs": epochs, "lr": 0.1, "batch_size": 20}
    stage = {"epochs": 2, "lr": 0.02, "batch_size": 20, **stage}
    raw = {
        "seed": 2,
        "data": DATA,
        "model": {"name": "mlp"},
        "train": {"log_every": 1, **train, "stages": [before, stage]},
    }
    return parse_config(raw)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(experiment({"method": "ce"}).data)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_tells_outliers_apart(
    method: str, splits: DataSplits, tmp_path: Path
) -> None:
    config = experiment({"method": method, "epochs": 2, "lr": 0.05}, epochs=5)
    run = fit(config, splits, tmp_path / "run")
    seen = rows_of(run.path, method)
    assert all(row["score_loss"] >= 0 for row in seen)
    assert ("grad_loss" in seen[0]) == (config.train.stages[-1].gradient)
    found = evaluate_model(run.load_model(), splits, score=run.config.score)
    assert found.id_accuracy > 0.75
    assert found.ood["textures"]["auroc"] > 0.8
    head = run.load_model().head.out_features
    assert head == (11 if "dos" in method or "openmix" in method else 10)
    assert run.manifest["score"] == config.score


def test_presets_are_written_out_and_can_be_overridden() -> None:
    plus = StageConfig(method="greg+", epochs=1, lr=0.1)
    assert (plus.score, plus.outlier_loss, plus.gradient) == ("energy", "margin", True)
    assert plus.strategy == "two_ended"
    exposure = StageConfig(method="oe+grad", epochs=1, lr=0.1, score="max_logit", lambda_score=0.2)
    assert (exposure.score, exposure.outlier_loss) == ("max_logit", "uniform")
    assert exposure.lambda_score == 0.2
    config = experiment({"method": "dos", "strategy": "greedy"})
    assert parse_config(__import__("yaml").safe_load(dump_config(config))) == config
    assert config.train.absent_class


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"method": "ce", "gradient": True}, "outliers"),
        ({"method": "energy", "score": "absent_class"}, "absent_class"),
        ({"method": "dos", "score": "energy"}, "absent_class"),
        ({"method": "greg", "share_ends": True}, "two_ended"),
        ({"method": "greg+", "clusters": 7}, "divide"),
        ({"method": "greg+", "candidates": 1, "aux_ratio": 2}, "candidates"),
        ({"method": "greg", "m_in": 1.0, "m_out": 0.0}, r"m_in < m_out.*1\.0 and 0\.0"),
        ({"method": "nonsense"}, "method"),
        ({"method": "energy", "outlier_loss": "none"}, "neither"),
        ({"method": "ce", "pool": 5}, "pool"),
        ({"method": "greg", "train": {"compile": True}}, "compile"),
        (
            {"method": "greg", "estimator": "finite-difference", "train": {"precision": "bf16"}},
            "bf16",
        ),
    ],
)
def test_contradictions_are_refused(stage: dict[str, Any], message: str) -> None:
    stage = dict(stage)
    with pytest.raises(ConfigError, match=message):
        experiment(stage, **stage.pop("train", {}))


def test_absent_class_and_margins_do_not_mix() -> None:
    raw = experiment({"method": "dos"}).model_dump(mode="json")
    raw["train"]["stages"].append({"method": "energy", "epochs": 1, "lr": 0.1})
    with pytest.raises(ConfigError, match=r"absent class in all stages .*absent_class, margin"):
        parse_config(raw)
    raw["train"]["stages"][-1] = {"method": "ce", "epochs": 1, "lr": 0.1}
    with pytest.raises(ConfigError, match="last stage"):
        parse_config(raw)


@pytest.mark.parametrize("strategy", ["random", "greedy", "dos", "two_ended", "posterior"])
def test_every_strategy_chooses_from_a_pool_of_the_epoch(
    strategy: str, splits: DataSplits, tmp_path: Path
) -> None:
    stage = {"method": "greg", "strategy": strategy, "pool": 300, **MARGINS}
    run = fit(experiment(stage, 1), splits, tmp_path / "run")
    assert len(rows_of(run.path, "greg")) == 2 * (len(splits.train) // 20)
    assert [p.name for p in run.checkpoint_file.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(("changes", "each"), [({"aux_ratio": 3}, 60), ({"share_ends": True}, 40)])
def test_a_pool_gives_every_step_as_many_as_without_one(
    changes: dict[str, Any],
    each: int,
    splits: DataSplits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    real = Objective.forward

    def watching(self: Objective, batch: Batch, *rest: Any) -> Any:
        seen.append(0 if batch.low is None else len(batch.low))
        return real(self, batch, *rest)

    monkeypatch.setattr(Objective, "forward", watching)
    for pool in (None, 480):
        stage = {"method": "greg+", "epochs": 1, "pool": pool, "clusters": 20, **MARGINS}
        fit(experiment({**stage, **changes}, 1), splits, tmp_path / str(pool))
        steps = len(splits.train) // 20
        # Without a pool a cluster smaller than its picks gives fewer.
        assert all(n == each if pool else each / 2 < n <= each for n in seen[-steps:])


def test_mixed_precision_trains_to_nearly_the_same(splits: DataSplits, tmp_path: Path) -> None:
    seen = {}
    for precision in ("32", "bf16"):
        config = experiment({"method": "greg+", "epochs": 1}, epochs=2, precision=precision)
        run = fit(config, splits, tmp_path / precision)
        seen[precision] = rows_of(run.path, "greg+")
        weights = run.load_model().state_dict().values()
        assert all(w.dtype == torch.float32 for w in weights)
    for key in ("ce", "score_id", "grad_norm_id", "grad_norm_aux"):
        full, low = (seen[p][0][key] for p in ("32", "bf16"))
        assert low == pytest.approx(full, rel=0.1, abs=0.02), key
        assert low != full


@pytest.mark.filterwarnings("default")  # those of the compiler itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_a_run_is_nearly_the_same(
    splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)  # more are processes that import torch
    last = []
    for compiled in (False, True):
        stage = {"method": "greg", "estimator": "finite-difference", "epochs": 1, **MARGINS}
        config = experiment(stage, compile=compiled)
        alone = config.train.model_copy(update={"stages": config.train.stages[1:]})
        config = config.model_copy(update={"train": alone})
        run = fit(config, splits, tmp_path / str(compiled))
        last.append(rows_of(run.path, "greg")[-1])
    for key in ("loss", "grad_loss", "grad_norm_id", "score_aux"):
        assert last[1][key] == pytest.approx(last[0][key], rel=0.02), key


def test_certificates_are_of_the_score_a_run_was_trained_for(
    hasty: None, splits: DataSplits, tmp_path: Path
) -> None:
    run = fit(experiment({"method": "oe"}), splits, tmp_path / "run")
    settings = run.config.verify.model_copy(
        update={"samples": 4, "method": "crown", "engine": "native"}
    )
    (done,) = verify_runs([run], settings, tmp_path / "out").runs
    logits = logits_of(run.load_model(), splits.test.subset(done.frame["index"].tolist()))
    expected = max_softmax(logits)
    assert done.frame["score"].to_numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    assert done.summary["score"] == "max_softmax"
    assert done.summary["violations"] == 0
