"""Sources that name another one for where their files are missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from greg_cert.config import ExperimentConfig, load_config, parse_config
from greg_cert.data import load_data
from greg_cert.data.schema import DataConfig
from greg_cert.data.sources.folder import FolderSource
from greg_cert.errors import ConfigError, DataWarning

CONFIGS = Path(__file__).parents[3] / "configs"
OTHER = {"source": "digits", "limit": 300, "name": "known"}


def experiment(folder: Path, **data: Any) -> ExperimentConfig:
    array = {"source": "array", "path": "some/known.npz", "name": "known", "otherwise": OTHER}
    raw = {
        "data": {"id": array, **data},
        "model": {"name": "mlp"},
        "train": {"stages": [{"method": "ce", "epochs": 1, "lr": 0.1}]},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_config(path)


def test_the_files_are_taken_where_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "some" / "known.npz", images=pixels, labels=np.arange(40) % 2)
    monkeypatch.chdir(CONFIGS)  # relative paths are the file's
    found = experiment(tmp_path)
    assert found.data.id.source == "array"
    assert found.data.id.model_dump()["otherwise"] is None
    assert load_data(found.data).num_classes == 2


def test_the_other_is_taken_where_they_are_missing_and_the_run_names_it(tmp_path: Path) -> None:
    folder = {"source": "folder", "path": "none", "name": "far", "otherwise": {"source": "faces"}}
    aux = {"source": "array", "path": "none.npy", "otherwise": {"source": "uniform", "n": 50}}
    with pytest.warns(DataWarning) as notes:
        found = experiment(tmp_path, ood=[folder], aux=aux)
    assert [str(note.message) for note in notes] == [
        "data.id: some/known.npz is not there; digits is taken",
        "data.aux: none.npy is not there; uniform is taken",
        "data.ood[0]: none is not there; faces is taken",
    ]
    assert [s.source for s in (found.data.id, found.data.aux, *found.data.ood) if s] == [
        *("digits", "uniform", "faces")
    ]
    assert parse_config(found.model_dump(mode="json")) == found


@pytest.mark.filterwarnings("ignore::greg_cert.errors.DataWarning")
@pytest.mark.parametrize("path", ["none", "."])
@pytest.mark.parametrize(
    "other", [{"source": "clouds"}, {"source": "digits", "limit": 0}, "digits", 3, {}]
)
def test_another_that_is_none_is_refused_whether_it_is_taken_or_not(
    tmp_path: Path, other: Any, path: str
) -> None:
    with pytest.raises(ConfigError, match=r"data\.id") as error:
        experiment(tmp_path, id={"source": "folder", "path": path, "otherwise": other})
    assert "\n" not in str(error.value)


def test_another_without_labels_is_none_for_what_needs_them(tmp_path: Path) -> None:
    folder = {"source": "folder", "path": ".", "otherwise": {"source": "uniform"}}
    with pytest.raises(ConfigError, match=r"expected a source in data\.id\.otherwise.*'uniform'"):
        experiment(tmp_path, id=folder)
    assert experiment(tmp_path, id=OTHER, ood=[folder]).data.ood[0].source == "folder"


def test_outside_of_a_data_section_it_is_refused() -> None:
    with pytest.raises(ValueError, match="`data` section alone"):
        FolderSource(path=Path("none"), otherwise=OTHER)
    found = DataConfig.model_validate({"id": OTHER})
    assert found.id.source == "digits"


def idx(path: Path, values: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """The format of MNIST's files: 0, 0, 8 (bytes), the number of axes, their lengths."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.mark.filterwarnings("ignore::greg_cert.errors.DataWarning")
def test_mnist_of_torchvision_stands_in_for_a_clone_alone(tmp_path: Path) -> None:
    """Every name of `configs/` is there without any file but those of a download."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    raw = tmp_path / "configs" / ".." / "data" / "MNIST" / "raw"
    raw.resolve().mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 400), ("t10k", 60)):
        idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    sets = ["data.ood=[{source: textures, n: 10}]", "data.aux.otherwise.n=30"]
    config = load_config(tmp_path / "configs" / "mnist_energy.yaml", sets)
    splits = load_data(config.data)
    assert len(splits.train) + len(splits.calibration) == 400
    assert splits.aux is not None
    assert (len(splits.test), len(splits.aux), splits.image_size) == (60, 30, 28)


@pytest.mark.parametrize(
    "path", [p for p in sorted(CONFIGS.glob("*.yaml")) if "../shared" in p.read_text()], ids=str
)
def test_no_configuration_needs_what_a_clone_lacks(path: Path) -> None:
    data = yaml.safe_load(path.read_text())["data"]
    for entry in (data["id"], data["id_test"], data["aux"], *data["ood"]):
        if "shared" in entry.get("path", ""):
            other = entry["otherwise"]
            assert "shared" not in str(other)
            DataConfig.model_validate({"id": OTHER, "ood": [other]})
