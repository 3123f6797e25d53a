"""What is said of keys that a configuration does not have, and which source a key belongs to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from greg_cert.config import ExperimentConfig, load_config, parse_config
from greg_cert.config.describe import keys_of
from greg_cert.config.tuned import load_tuned
from greg_cert.errors import ConfigError

STAGE = {"method": "ce", "epochs": 1, "lr": 0.1}
RAW: dict[str, Any] = {
    "data": {"id": {"source": "digits"}, "ood": [{"source": "uniform"}]},
    "model": {"name": "mlp"},
    "train": {"stages": [STAGE]},
}


def stage(**keys: Any) -> dict[str, Any]:
    without = {k: v for k, v in STAGE.items() if k not in keys.pop("without", ())}
    return {**RAW, "train": {"stages": [{**without, **keys}]}}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (stage(batch=5), "train.stages[0].batch: unknown key; did you mean 'batch_size'?"),
        (stage(LR=5), "train.stages[0].LR: unknown key; did you mean 'lr'?"),
        (
            stage(learning_rate=0.1, without=("lr",)),  # which is not missing besides
            "train.stages[0].learning_rate: unknown key; did you mean 'lr'?",
        ),
        (
            stage(epoch=1, lrr=0.1),
            "unknown keys train.stages[0].epoch (did you mean 'epochs'?), "
            "train.stages[0].lrr (did you mean 'lr'?)",
        ),
        (
            {"data": RAW["data"], "modle": RAW["model"], "trian": RAW["train"]},
            "unknown keys modle (did you mean 'model'?), trian (did you mean 'train'?)",
        ),
        (
            stage(wd=1, epochs=0),
            "train.stages[0].wd: unknown key; did you mean 'weight_decay'? (and 1 more)",
        ),
        (
            stage(epochs=0, lr=0),
            "train.stages[0].epochs: input should be greater than 0, but got 0 (and 1 more)",
        ),
        (
            {**RAW, **{f"key{i}": 1 for i in range(6)}},
            "unknown keys key0, key1, key2, key3 (and 2 more)",
        ),
        ({**RAW, "floating": 1}, "floating: unknown key"),
        (
            stage(seed=1),
            "train.stages[0].seed: unknown key; `greg-cert config schema` has 'seed' in another "
            "section",
        ),
        (
            {**RAW, "data": {"id": {"source": "folder", "dir": "x"}}},
            "data.id.dir: unknown key; did you mean 'path'?",
        ),
        (
            {**RAW, "data": {**RAW["data"], "ood": [{"source": "uniform", "N": 5}]}},
            "data.ood[0].N: unknown key; did you mean 'n'?",
        ),
    ],
)
def test_a_line_names_the_keys_and_what_they_were_meant_to_be(raw: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(copy.deepcopy(raw))
    assert str(error.value) == said


def test_set_and_tune_know_the_synonyms_too(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(RAW))
    with pytest.raises(ConfigError, match=r"did you mean 'train\.stages\[0\]\.batch_size'"):
        load_config(file, ["train.stages[0].bs=5"])
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        load_tuned(file, "learning_rate", ["1", "2"], [])


def test_a_model_from_elsewhere_is_not_trained(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"data": RAW["data"], "model": {"factory": "mine:make"}}))
    said = "no `train`: add it, or, where the model is trained already, give the file to evaluate"
    with pytest.raises(ConfigError, match=said):
        load_config(file)
    with pytest.raises(ConfigError, match=said):
        load_tuned(file, "lr", ["1", "2"], [])


def test_the_schema_says_which_source_a_key_belongs_to() -> None:
    told = {key.key: key for key in keys_of(ExperimentConfig, "data")}
    assert told["data.id.inside"].meaning.startswith("Of folder: Folder inside")
    both = told["data.ood[].path"].meaning
    assert both.startswith("Of array: The file. Of folder: A folder, or an archive")
    assert told["data.aux.n"].meaning.startswith("Of photographs, textures, text, uniform, gaus")
    assert not told["data.id.limit"].meaning.startswith("Of ")  # all have it
    assert told["data.id.source"].values == "digits | array | folder | torchvision"
