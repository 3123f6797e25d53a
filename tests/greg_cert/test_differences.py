"""The page of differences, row by row: settings that exist, defaults that are, and numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from greg_cert.config import load_config, parse_config
from greg_cert.models import build_model
from greg_cert.stages import StageConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("| what", "| ---"))
]
STAGE = {"method": "greg+", "epochs": 60, "lr": 0.2}
DEFAULT = StageConfig(**STAGE)
REFERENCES = sorted((ROOT / "configs").glob("*_reference.yaml"))
# What the authors' code has and the text has not.
LOSS = {"scaling": "reference", "gradient_space": "normalized"}
STEP = {"optimizer": "adam", "weight_decay": 0.0}


def settings(cell: str) -> list[dict[str, Any]]:
    """The settings in a cell, as a stage, a model or a data set would have them."""
    found = []
    for text in re.findall(r"`([^`]*: [^`]*)`", cell):
        value = yaml.safe_load(text if text.startswith("{") else f"{{{text}}}")
        assert isinstance(value, dict)
        found.append(value)
    return found


def experiment(part: dict[str, Any]) -> dict[str, Any]:
    """A configuration with one setting of the page in its place."""
    raw: dict[str, Any] = {
        "data": {"id": {"source": "digits"}, "channels": 3, "image_size": 32},
        "model": {"name": "mlp"},
        "train": {"stages": [STAGE]},
    }
    if "source" in part:
        raw["data"]["ood"] = [part]
    elif part.keys() <= {"data", "model"}:
        raw["data"] |= part.get("data", {})
        raw["model"] = part.get("model", raw["model"])
    else:
        raw["train"]["stages"] = [STAGE | part]
    return raw


def test_the_page_has_its_rows() -> None:
    assert all(len(row) == 5 for row in ROWS)
    assert sum(bool(settings(row[4])) for row in ROWS) >= 18


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_settings_of_a_row_exist_and_are_not_the_default(row: list[str]) -> None:
    assert settings(row[4]) or len(row[4]) == 1
    for part in settings(row[4]):
        config = parse_config(experiment(part))
        if "source" in part or part.keys() <= {"data", "model"}:
            continue
        (stage,) = config.train.stages
        changed = {name for name in part if getattr(stage, name) != getattr(DEFAULT, name)}
        assert changed == set(part)
    for part in settings(row[3]):
        if part.keys() <= StageConfig.model_fields.keys():
            assert {name: getattr(DEFAULT, name) for name in part} == part


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_a_reference_is_the_authors_setting_of_the_experiment_beside_it(path: Path) -> None:
    theirs = load_config(path)
    (stage,) = theirs.train.stages
    kind = path.stem.removesuffix("_reference").rsplit("_", 1)[1]
    adam = kind != "greg" or path.stem.startswith("imagenet")
    expected: dict[str, Any] = {} if kind == "dos" else dict(LOSS)
    expected |= STEP if adam else {"optimizer": "sgd", "weight_decay": 1e-4}
    if kind != "greg":
        expected |= {"singletons": "random", "share_ends": kind == "gregplus"}
    expected["ranks"] = (16, 384) if kind == "dos" else None
    assert {name: getattr(stage, name) for name in expected} == expected
    if "wrn40" in path.stem:
        assert theirs.model.dropout == 0
    beside = path.with_name(path.name.replace("_reference", ""))
    if beside.exists():
        (ours,) = load_config(beside).train.stages
        assert (ours.scaling, ours.gradient_space, ours.share_ends) == ("paper", "pixel", False)
        same = ("method", "epochs", "lr", "batch_size", "augment")
        assert [getattr(ours, n) for n in same] == [getattr(stage, n) for n in same]
    else:
        assert path.stem.endswith("dos_reference")


def test_candidates_of_an_epoch_beside_a_calibration_split() -> None:
    config = load_config(ROOT / "configs" / "cifar10_wrn40_gregplus_reference.yaml")
    (stage,) = config.train.stages
    left = round(50_000 * (1 - config.data.calibration))
    assert left == 45_000
    assert left // stage.batch_size * stage.batch_size * stage.candidates == 269_952
    assert "269,952" in PAGE


def test_their_resnet18_begins_at_a_quarter_of_the_resolution() -> None:
    sizes: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    sizes |= {"mean": [0.5] * 3, "std": [1] * 3}
    seen = []
    for name in ("torchvision/resnet18", "resnet18_32x32"):
        body = build_model(name, **sizes).body
        conv = next(m for m in body.modules() if isinstance(m, nn.Conv2d))
        pool = any(isinstance(m, nn.MaxPool2d) for m in body.modules())
        seen.append((conv.kernel_size, conv.stride, pool))
    assert seen == [((7, 7), (2, 2), True), ((3, 3), (1, 1), False)]
