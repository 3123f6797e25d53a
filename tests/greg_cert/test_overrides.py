"""`--set KEY=VALUE`: where it lands, and what is said of what cannot be set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greg_cert.config import ExperimentConfig, load_config
from greg_cert.config.overrides import apply_overrides, parse_override
from greg_cert.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "digits_gregplus.yaml"


def raw() -> dict[str, Any]:
    return {
        "data": {
            "id": {"source": "digits"},
            "ood": [{"source": "uniform", "n": 5}, {"source": "textures", "n": 6}],
        },
        "model": {"name": "mlp"},
        "train": {
            "stages": [
                {"method": "ce", "epochs": 1, "lr": 0.1},
                {"method": "ce", "epochs": 2, "lr": 0.1},
            ]
        },
    }


def changed(*overrides: str) -> dict[str, Any]:
    return apply_overrides(raw(), overrides, ExperimentConfig)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("train.stages[1].lr=0.5", ("train", "stages", 1, "lr"), 0.5),
        ("train.stages.1.lr=1e-1", ("train", "stages", 1, "lr"), "1e-1"),  # YAML's own reading
        ("name=a=b", ("name",), "a=b"),
        ("verify.samples=null", ("verify", "samples"), None),
        ("verify.method=[crown, branch]", ("verify", "method"), ["crown", "branch"]),
    ],
)
def test_key_and_value(text: str, path: tuple[Any, ...], value: Any) -> None:
    found = parse_override(text)
    assert (found.path, found.value) == (path, value)


@pytest.mark.parametrize("text", ["seed", "=3", "train..epochs=1", "a[x]=1", "a]=1", "seed=[1"])
def test_what_is_no_key_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_a_setting_lands_where_it_says_and_nowhere_else() -> None:
    before = raw()
    found = changed("data.ood[1].n=9", "verify.norm=inf", "seed=4", "seed=5")
    assert found["data"]["ood"] == [{"source": "uniform", "n": 5}, {"source": "textures", "n": 9}]
    assert (found["verify"], found["seed"]) == ({"norm": "inf"}, 5)  # YAML's infinity is .inf
    assert raw() == before
    assert found["train"] == before["train"]


def test_a_setting_of_a_stage_goes_to_all_of_them() -> None:
    found = changed("train.epochs=7", "train.stages[0].lr=0.3", "train.log_every=2")
    assert [s["epochs"] for s in found["train"]["stages"]] == [7, 7]
    assert [s["lr"] for s in found["train"]["stages"]] == [0.3, 0.1]
    assert found["train"]["log_every"] == 2
    assert "epochs" not in found["train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.epoch=1", "'train.epochs'"),
        ("verfy.norm=2", "'verify'"),
        ("verify.nrom=2", "'verify.norm'"),
        ("data.ood[2].n=1", "2 of them"),
        ("data.ood.n=1", "data.ood"),
        ("seed.x=1", "seed"),
        ("model[0]=1", "model"),
    ],
)
def test_what_there_is_not_is_named_with_what_is_near(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(text)
    assert said in str(caught.value)


def test_typed_paths_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("train.init=w.safetensors", "train.init.weights=w.safetensors"):
        config = load_config(CONFIG, [text])
        assert config.train.init is not None
        assert config.train.init.weights == tmp_path / "w.safetensors"
    config = load_config(CONFIG, ["data.ood=[{source: folder, path: a}, {source: uniform, n: 3}]"])
    assert [s.source for s in config.data.ood] == ["folder", "uniform"]
    assert config.data.ood[0].path == tmp_path / "a"  # type: ignore[union-attr]


def test_values_are_checked_by_the_schema() -> None:
    assert load_config(CONFIG, ["train.epochs=3"]).train.stages[-1].epochs == 3
    with pytest.raises(ConfigError, match=r"epochs.*-1"):
        load_config(CONFIG, ["train.epochs=-1"])
    with pytest.raises(ConfigError, match=r"verify\.tpr"):
        load_config(CONFIG, ["verify.tpr=2"])


def test_the_position_after_the_last_adds_one() -> None:
    found = changed("data.ood[2]={source: gaussian, n: 2}", "data.ood[2].n=4")
    assert found["data"]["ood"][2] == {"source": "gaussian", "n": 4}
    with pytest.raises(ConfigError, match="2 of them"):
        changed("data.ood[3]={source: gaussian}")
