"""Where a setting that is tuned lands, at which values, and means over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from greg_cert.config import load_config
from greg_cert.config.tuned import load_tuned
from greg_cert.errors import ConfigError, UsageError
from greg_cert.runs.tuned_runs import NUMBERS, TunedRun, over_seeds

STAGES = [
    {"method": "ce", "epochs": 1, "lr": 0.1},
    {"method": "greg", "epochs": 2, "lr": 0.05, "lambda_grad": 0.3},
    {"method": "energy", "epochs": 3, "lr": 0.01},
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    experiment: dict[str, Any] = {
        "seed": 7,
        "data": {"id": {"source": "digits"}, "aux": {"source": "photographs"}},
        "model": {"name": "mlp"},
        "train": {"stages": STAGES},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.mark.parametrize(
    ("setting", "keys", "why"),
    [
        ("lambda_grad", ("train.stages[1].lambda_grad",), "the one stage that sets it"),
        ("lambda_lipschitz", ("train.stages[2].lambda_lipschitz",), "in the last one"),
        # A method implies a value of it in two stages; that is not setting it explicitly.
        ("lambda_score", ("train.stages[2].lambda_score",), "in the last one"),
        ("lr", tuple(f"train.stages[{i}].lr" for i in range(3)), "the stages that set it"),
        ("train.stages[0].lr", ("train.stages[0].lr",), ""),
    ],
)
def test_a_setting_lands_in_the_stages_that_set_it_or_the_last(
    config: Path, setting: str, keys: tuple[str, ...], why: str
) -> None:
    tuned = load_tuned(config, setting, ["0.25", "5e-1"], [])
    assert tuned.keys == keys
    assert why in tuned.why
    assert bool(why) == bool(tuned.why)
    for value, found in tuned.configs.items():
        assert found == load_config(config, [f"{key}={value}" for key in keys])
        name = setting.rpartition(".")[2]
        changed = [i for i in range(3) if f"train.stages[{i}].{name}" in keys]
        assert [getattr(found.train.stages[i], name) for i in changed] == [float(value)] * len(keys)
    assert list(tuned.configs) == ["0.25", "5e-1"]


def test_what_set_gives_is_a_stage_s_own_setting_too(config: Path) -> None:
    overrides = ["train.stages[0].weight_decay=0.1", "seed=3"]
    tuned = load_tuned(config, "weight_decay", ["0", "1"], overrides)
    assert tuned.keys == ("train.stages[0].weight_decay",)
    assert [c.train.stages[0].weight_decay for c in tuned.configs.values()] == [0, 1]
    assert {c.seed for c in tuned.configs.values()} == {3}


def test_a_path_of_the_model_and_of_all_stages(config: Path) -> None:
    tuned = load_tuned(config, "model.activation", ["relu", "maxmin"], [])
    assert [c.model.activation for c in tuned.configs.values()] == ["relu", "maxmin"]
    tuned = load_tuned(config, "train.momentum", ["0.5"], [])
    assert {s.momentum for s in tuned.configs["0.5"].train.stages} == {0.5}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("lambda_lipshitz", "1", "--for: unknown setting.*did you mean 'lambda_lipschitz'"),
        ("activaton", "relu", "--for: unknown setting.*did you mean 'model.activation'"),
        ("train.stages[1].lrr", "1", r"--for: unknown key.*did you mean 'train.stages\[1\].lr'"),
        ("train.stages[9].lr", "1", "--for .*expected a position in train.stages.*3 of them"),
        ("stages", "1", "--for: unknown setting"),
        ("a b", "1", "--for: expected the name of a setting, but got 'a b'"),
        ("seed", "1", "--for: expected a setting of train or model.*--seeds"),
        ("data.seed", "1", "--for: expected a setting of train or model.*'data.seed'"),
        ("verify.tpr", "1", "--for: expected a setting of train or model"),
        ("model", "x", "--for: expected a setting of train or model"),
        ("lr", "-1", r"train.stages\[0\].lr: .*-1"),
        ("lr", "[1", "--for train.stages.*expected a value in YAML"),
    ],
)
def test_what_cannot_be_tuned_is_refused(config: Path, setting: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_tuned(config, setting, [value], [])


def test_values_that_are_the_same_are_refused(config: Path) -> None:
    with pytest.raises(UsageError, match=r"--values: .*0.1 and .10 give the same experiment"):
        load_tuned(config, "lambda_grad", ["0.1", "0.2", ".10"], [])


def run(value: str, seed: int, **numbers: float | None) -> TunedRun:
    return TunedRun(value, seed, numbers)


def test_means_and_deviations_over_the_seeds_that_have_a_number() -> None:
    failed = TunedRun("b", 1, {"train_cpu_seconds": 9.0}, "it diverged")
    values = over_seeds(
        [
            run("a", 0, accuracy=0.5, auroc=None, radius_attack=1.0, share=0.25),
            run("a", 1, accuracy=0.75, radius_attack=math.inf),
            run("b", 0, accuracy=1.0),
            failed,
        ]
    )
    a, b = values
    assert (a.value, a.runs, a.errors) == ("a", 2, ())
    assert (b.value, b.runs, b.errors) == ("b", 1, ("it diverged",))
    assert (a.mean["accuracy"], a.std["accuracy"]) == (0.625, pytest.approx(0.25 / 2**0.5))
    assert (a.mean["share"], a.std["share"]) == (0.25, None)
    assert (a.mean["auroc"], a.std["auroc"]) == (None, None)
    assert (a.mean["radius_attack"], a.std["radius_attack"]) == (math.inf, None)
    assert (b.mean["accuracy"], b.std["accuracy"]) == (1.0, None)
    assert set(a.mean) == set(a.std) == set(NUMBERS)
