"""The files of a run folder are believed only as they were written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flips
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.config.places import without_places
from greg_cert.digests import json_digest, sealed, tensors_digest
from greg_cert.errors import RunError, UncheckedFileWarning
from greg_cert.models import build_model
from greg_cert.runs.manifest import write_manifest
from greg_cert.runs.records import RunFolder, config_digest, write_config
from greg_cert.runs.subjects import OtherOod
from greg_cert.runs.weights import load_foreign
from greg_cert.tensor_file import read_tensors, write_tensors

SIZES = {"num_classes": 3, "in_channels": 1, "image_size": 4, "mean": [0.5], "std": [0.25]}


def experiment() -> ExperimentConfig:
    stage = {"epochs": 1, "lr": 0.1}
    return parse_config(
        {
            "data": {
                "id": {"source": "digits"},
                "aux": {"source": "photographs", "n": 400},
                "ood": [{"source": "folder", "path": "here/a.zip", "inside": "x", "name": "ood"}],
            },
            "model": {"name": "mlp"},
            "train": {"stages": [{"method": "ce", **stage}, {"method": "greg+", **stage}]},
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that came to its end, without the training."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    config, model = experiment(), build_model("mlp", **SIZES)
    write_config(folder, config)
    digests = {
        "config.yaml": config_digest(config),
        "model.safetensors": state_digest(model),
    }
    manifest = {"data": {"test": "x"}, "model": SIZES, "seed": 0, "digests": digests}
    write_manifest(folder.path, manifest)
    folder.save_weights(model)
    return folder


def state_digest(model: nn.Module) -> str:
    return tensors_digest(model.state_dict())


def fresh(run: RunFolder) -> RunFolder:
    """The same folder, of which nothing is read yet."""
    return RunFolder(run.path)


def rewritten(run: RunFolder, change: Callable[[dict[str, Any]], object], seal: bool) -> None:
    manifest = dict(run.manifest)
    change(manifest)
    text = json.dumps(sealed(manifest) if seal else manifest)
    run.manifest_file.write_text(text)


def of_an_earlier_version(run: RunFolder) -> RunFolder:
    def strip(manifest: dict[str, Any]) -> None:
        del manifest["digest"], manifest["digests"]

    rewritten(run, strip, seal=False)
    save_file(load_file(run.weights_file), run.weights_file)
    return fresh(run)


def test_a_whole_run_is_read_without_a_word(run: RunFolder) -> None:
    found = fresh(run)
    assert found.config == experiment()
    assert found.manifest["seed"] == 0
    assert state_digest(found.load_model()) == found.manifest["digests"]["model.safetensors"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("method: greg+", "method: greg"),
        ("lr: 0.1", "lr: 0.10000000000000002"),
        ("seed: 0", "seed: 2020-01-01"),
        ("seed: 0", "seed: 2020-99-99"),
        ("  - method: greg+", None),  # half of it, which is valid
    ],
)
def test_an_edited_configuration_is_refused(run: RunFolder, old: str, new: str | None) -> None:
    text = run.config_file.read_text()
    assert old in text
    half = text[: text.index(old)]
    run.config_file.write_text(half if new is None else text.replace(old, new))
    dated = new is not None and "2020" in new  # no configuration holds a date
    said = r"config\.yaml" if dated else r"config\.yaml: field digests\.config\.yaml of manifest"
    with pytest.raises(RunError, match=said):
        fresh(run).config  # noqa: B018


def test_another_layout_of_the_same_configuration_is_the_same(run: RunFolder) -> None:
    raw = yaml.safe_load(run.config_file.read_text())
    run.config_file.write_text("# by hand\n" + yaml.safe_dump(raw, default_flow_style=True))
    assert fresh(run).config == experiment()


def test_data_may_move_but_not_become_others(run: RunFolder) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("here/a.zip", "there.zip"))
    assert str(fresh(run).config.data.ood[0].path) == "there.zip"  # type: ignore[union-attr]
    run.config_file.write_text(text.replace("inside: x", "inside: y"))
    with pytest.raises(RunError, match=r"field digests\.config\.yaml"):
        fresh(run).config  # noqa: B018


def test_a_digest_that_knows_where_the_data_stood_is_of_an_earlier_version(run: RunFolder) -> None:
    text = run.config_file.read_text()
    digest = json_digest({"config": yaml.safe_load(text)})
    rewritten(run, lambda m: m["digests"].update({"config.yaml": digest}), seal=True)
    assert fresh(run).config == experiment()
    run.config_file.write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(RunError, match=r"field digests\.config\.yaml"):
        fresh(run).config  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["data"].update(test="y"),
        lambda m: m["model"].update(std=[0.5]),
        lambda m: m["digests"].pop("config.yaml"),
        lambda m: m.update(method="greg"),
    ],
)
def test_an_edited_manifest_is_refused(
    run: RunFolder, change: Callable[[dict[str, Any]], object]
) -> None:
    rewritten(run, change, seal=False)
    with pytest.raises(RunError, match=r"manifest\.json: field digest: expected"):
        fresh(run).load_model()


@pytest.mark.parametrize("digests", [None, {}, [], {"model.safetensors": "0" * 64}])
def test_a_manifest_that_does_not_tell_of_the_weights_is_refused(
    run: RunFolder, digests: Any
) -> None:
    rewritten(run, lambda m: m.update(digests=digests), seal=True)
    with pytest.raises(RunError, match=r"model\.safetensors: field digests\.model\.safetensors of"):
        fresh(run).read_weights()


def test_the_weights_of_another_run_are_refused(run: RunFolder) -> None:
    other = build_model("mlp", **SIZES)
    write_tensors(run.weights_file, other.state_dict())  # whole, but not these
    with pytest.raises(RunError, match=r"model\.safetensors: field digests\.model\.safetensors of"):
        fresh(run).load_model()


def test_a_changed_tensor_is_refused_wherever_the_file_is_read(run: RunFolder) -> None:
    state = load_file(run.weights_file)
    state["head.bias"][0] += 1e-6
    content = run.weights_file.read_bytes()
    held = load_file(run.weights_file)["head.bias"].numpy().tobytes()
    run.weights_file.write_bytes(content.replace(held, state["head.bias"].numpy().tobytes()))
    for read in (
        lambda: fresh(run).load_model(),
        lambda: read_tensors(run.weights_file),
        lambda: load_foreign(build_model("mlp", **SIZES), run.weights_file),
    ):
        with pytest.raises(RunError, match=r"model\.safetensors: field digest: expected"):
            read()


def test_a_run_of_an_earlier_version_is_read_with_one_line(run: RunFolder) -> None:
    old = of_an_earlier_version(run)
    with pytest.warns(UncheckedFileWarning, match="run was written by an earlier version") as told:
        assert old.config == experiment()
    with warnings.catch_warnings(record=True) as more:
        warnings.simplefilter("always")
        old.load_model()
        fresh(old).load_model()
    assert (len(told), len(more)) == (1, 0)


def test_other_ood_sets_leave_no_digest_of_another_manifest(run: RunFolder) -> None:
    class Other(OtherOod):
        _splits: Any = type("", (), {"fingerprints": lambda self: {"ood/new": "z"}})()

    assert "digest" in run.manifest
    manifest = Other(run, ()).manifest
    assert "digest" not in manifest
    assert manifest["data"] == {"test": "x", "ood/new": "z"}


FILES: dict[str, Callable[[RunFolder], object]] = {
    "config.yaml": lambda run: without_places(run.config.model_dump(mode="json"), run.config),
    "manifest.json": lambda run: {
        k: v for k, v in run.manifest.items() if k in ("data", "model", "seed", "digests")
    },
    "model.safetensors": lambda run: state_digest(run.load_model()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_or_changes_nothing(run: RunFolder, name: str) -> None:
    whole = FILES[name](fresh(run))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedFileWarning)  # where it hit the word "digest"
        for found in flips.believed(run.path / name, lambda: FILES[name](fresh(run)), 25):
            assert found == whole


class Tied(nn.Module):
    """Two linear layers of one matrix, one of them transposed, and two halves of one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("turned", self.one.weight.detach().t())
        packed = torch.arange(6.0)
        self.register_buffer("left", packed[:3])
        self.register_buffer("right", packed[3:])


def state() -> dict[str, Tensor]:
    matrix = torch.arange(16.0).view(4, 4)
    return {
        "one.weight": matrix,
        "two.weight": matrix.clone(),
        "turned": matrix.t().contiguous(),
        "left": torch.tensor([6.0, 7.0, 8.0]),
        "right": torch.tensor([9.0, 10.0, 11.0]),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["one.weight", "two.weight", "turned"])
def test_two_values_for_a_tied_tensor_are_refused(tmp_path: Path, name: str, suffix: str) -> None:
    path, model, values = tmp_path / f"w{suffix}", Tied(), state()
    values[name][0, 1] = -1.0
    save = save_file if suffix == ".safetensors" else torch.save
    save(values, path)
    before = state_digest(model)
    with pytest.raises(RunError, match=r"one value in .*w\.\w+ for tensors .* ties.*several for"):
        load_foreign(model, path)
    assert state_digest(model) == before  # left untouched


def test_a_tied_model_with_one_value_goes_through_a_file(tmp_path: Path) -> None:
    model = Tied()
    torch.save(state(), tmp_path / "w.pt")
    load_foreign(model, tmp_path / "w.pt")
    assert tensors_digest(model.state_dict()) == tensors_digest(state())
    write_tensors(tmp_path / "w.safetensors", model.state_dict())  # shared memory or not
    assert read_tensors(tmp_path / "w.safetensors").digest == tensors_digest(state())


def test_a_run_whose_model_ties_weights_is_checked_too(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tied(*_: Any, **__: Any) -> nn.Module:
        return Tied()

    monkeypatch.setattr("greg_cert.runs.networks.build_model", tied)
    values = state()
    values["two.weight"][0, 1] = -1.0
    write_tensors(run.weights_file, values)
    digest = tensors_digest(values)
    rewritten(run, lambda m: m["digests"].update({"model.safetensors": digest}), seal=True)
    with pytest.raises(RunError, match=r"several for one\.weight, turned, two\.weight"):
        fresh(run).load_model()
