"""Configurations: what is refused, how it is said, and that what is saved comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from greg_cert.config import dump_config, load_config, parse_config
from greg_cert.errors import ConfigError

ROOT = Path(__file__).parents[2]
CE = {"method": "ce", "epochs": 1, "lr": 0.1}


def minimal() -> dict[str, Any]:
    return {
        "data": {"id": {"source": "digits"}},
        "model": {"name": "mlp"},
        "train": {"stages": [dict(CE)]},
    }


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_committed_config_is_valid_and_survives_a_round_trip(path: Path) -> None:
    config = load_config(path)
    again = parse_config(yaml.safe_load(dump_config(config)))
    assert again == config


def test_title_and_method_come_from_the_last_stage() -> None:
    raw = minimal()
    raw["train"]["stages"].append({"method": "greg+", "epochs": 1, "lr": 0.1})
    config = parse_config(raw)
    assert (config.method, config.title) == ("greg+", "greg+")
    assert parse_config({**raw, "name": "mine"}).title == "mine"


def test_relative_paths_start_from_the_file(tmp_path: Path) -> None:
    raw = minimal()
    raw["data"]["id"] = {"source": "array", "path": "sub/x.npz"}
    raw["train"]["init"] = "../weights.safetensors"
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "c.yaml").write_text(yaml.safe_dump(raw))
    config = load_config(folder / "c.yaml")
    assert config.data.id.path == folder / "sub/x.npz"  # type: ignore[union-attr]
    assert config.train.init is not None
    assert config.train.init.weights.resolve() == tmp_path / "weights.safetensors"


def _with(path: str, value: Any) -> dict[str, Any]:
    raw = minimal()
    *parents, last = path.split(".")
    place: Any = raw
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("train.stages.0.epochs", 0, ["train.stages[0].epochs", "greater than 0", "0"]),
        ("train.stages.0.lr", float("nan"), ["train.stages[0].lr", "nan"]),
        ("train.stages.0.method", "gregg", ["train.stages[0].method", "'greg'", "'gregg'"]),
        ("train.stages.0.epoch", 3, ["train.stages[0].epoch", "unknown", "'epochs'"]),
        ("train.stages.0.m_in", "low", ["train.stages[0].m_in", "'low'"]),
        ("train.stages.0.optimizer", "adagrad", ["train.stages[0].optimizer", "'adamw'"]),
        ("train.stages", [{**CE, "betas": (0.9, 0.99)}], ["train.stages[0]", "sgd", "(0.9, 0.99)"]),
        (
            "train.stages",
            [{**CE, "optimizer": "adam", "momentum": 0.8}],
            ["stages[0]", "no momentum beside optimizer adam", "0.8"],
        ),
        ("data.aux", {"source": "photographs", "n": 0}, ["data.aux.n", "0"]),
        (
            "data.id",
            {"source": "folder", "path": "x", "crop": 2},
            ["data.id.crop: ", "equal to 1", "2"],
        ),
        ("data.aux", {"source": "clouds"}, ["data.aux", "clouds", "photographs"]),
        ("data.calibration", 1.5, ["data.calibration", "1.5"]),
        ("model", {}, ["model: ", "one of name or factory"]),
        ("model.activation", "gelu", ["model.activation", "'maxmin'", "'gelu'"]),
        ("model", {"name": "wrn16_2", "activation": "maxmin"}, ["model", "liresnet", "'maxmin'"]),
        ("model", {"name": "mlp", "dropout": 0.1}, ["model", "dropout: ", "wrn40_2", "0.1"]),
        ("verify", {"norm": "1"}, ["verify.norm", "'2' or 'inf'", "'1'"]),
        ("sed", 1, ["sed", "unknown", "'seed'"]),
    ],
)
def test_a_bad_field_is_one_line_with_field_and_value(
    path: str, value: Any, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(_with(path, value))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("model", "activation"),
    [
        ({"name": "mlp"}, "relu"),
        ({"name": "torchvision/mobilenet_v2"}, "relu"),
        ({"name": "lip_cnn"}, "maxmin"),
        ({"name": "liresnet", "activation": None}, "maxmin"),
        ({"name": "liresnet", "activation": "relu"}, "relu"),
        ({"name": "wrn16_2", "activation": "relu"}, "relu"),  # as versions before wrote it
    ],
)
def test_a_resolved_configuration_names_the_activation(
    model: dict[str, Any], activation: str
) -> None:
    found = parse_config(_with("model", model))
    again = parse_config(found.model_dump(mode="json"))
    assert found.model_dump(mode="json")["model"]["activation"] == activation
    assert again == found


@pytest.mark.parametrize(
    ("model", "dropout"),
    [({"name": "wrn40_2"}, 0.3), ({"name": "wrn40_2", "dropout": 0}, 0.0), ({"name": "mlp"}, None)],
)
def test_a_resolved_configuration_names_the_dropout(
    model: dict[str, Any], dropout: float | None
) -> None:
    found = parse_config(_with("model", model))
    assert found.model_dump(mode="json")["model"]["dropout"] == dropout
    assert found.model.choices["dropout"] == dropout
    assert parse_config(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1,", "valid YAML"),
        (b"- 1\n", "a mapping"),
        (b"\xff\xfe\x00", "readable"),
        (None, "readable"),  # no file at all
    ],
)
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert "c.yaml" in str(caught.value)
