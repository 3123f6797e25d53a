"""Checkpoints as other programs write them: NumPy's numbers, parts, tied and stray tensors."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from greg_cert.errors import RunError
from greg_cert.models import build_model
from greg_cert.runs.pickled_numbers import numbers_allowed
from greg_cert.runs.state_file import read_state
from greg_cert.runs.weights import load_foreign


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"num_classes": 4, "in_channels": 1, "image_size": 4, "mean": (0.5,), "std": (0.2,)}
    return build_model("mlp", **sizes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {k: v.clone() for k, v in mlp().state_dict().items()}


@pytest.mark.parametrize(
    "number",
    [np.float64(0.9), np.float32(0.5), np.int64(-7), np.bool_(True), np.dtype(">f8").type(2)],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_numbers_of_numpy_are_read_as_pythons(
    number: Any, new_format: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    content = {"state_dict": state, "best_acc": number}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    assert read_state(path).entry == "state_dict"
    with numbers_allowed():
        found = torch.load(path, weights_only=True)["best_acc"]
    assert type(found) in (bool, int, float)
    assert found == number
    with pytest.raises(pickle.UnpicklingError):  # the leave ends with the block
        torch.load(path, weights_only=True)


class _Made:
    """Pickles as a call of NumPy's `scalar`."""

    def __init__(self, kind: Any, data: Any) -> None:
        self.made = kind, data

    def __reduce__(self) -> Any:
        scalar, _ = np.float64(0.0).__reduce__()[:2]
        return scalar, self.made


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (np.dtype("O"), b"\0" * 8),  # bytes that would be taken for an address
        (np.dtype([("a", "O")]), b"\0" * 8),
        (np.dtype("f8"), b"\0" * 7),
        (np.dtype("f8"), b"\0" * 16),
        (np.dtype("f8"), "text"),
        (1, b"\0" * 8),
    ],
)
def test_nothing_but_a_number_is_made(
    kind: Any, data: Any, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": state, "best_acc": _Made(kind, data)}, path)
    with pytest.raises(RunError, match=r"^weights: expected .*w\.pt"):
        read_state(path)


def parts(state: dict[str, Tensor], folder: Path, **changed: str) -> Path:
    """Two safetensors files and their index."""
    names = list(state)
    where = {k: f"model-0000{1 + (k in names[2:])}-of-00002.safetensors" for k in names}
    for name in set(where.values()):
        save_file({k: state[k] for k in names if where[k] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**where, **changed}}))
    return index


def test_parts_are_read_by_their_index(state: dict[str, Tensor], tmp_path: Path) -> None:
    index, model = parts(state, tmp_path), mlp(1)
    report = load_foreign(model, index)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    files = [index, *sorted(tmp_path.glob("*-of-*"))]
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    assert report.sha256 == digest


def test_a_part_alone_and_a_false_index_are_refused(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    index = parts(state, tmp_path)
    with pytest.raises(RunError, match=r"is one of 2: give .* model\.safetensors\.index\.json"):
        read_state(tmp_path / "model-00001-of-00002.safetensors")
    first = "model-00001-of-00002.safetensors"
    for changed, said in (
        ({"head.weight": first}, "got head.weight, which model-00001.* should have"),
        ({"more": first}, "got more, which model-00001.* should have"),
        ({"head.weight": "../x.safetensors"}, r"got '\.\./x\.safetensors'"),
        ({"head.weight": "x.pt"}, r"got 'x\.pt'"),
        ({"head.weight": "none.safetensors"}, r"none\.safetensors"),
    ):
        parts(state, tmp_path, **changed)
        with pytest.raises(RunError, match=said):
            read_state(index)
    for text in ("{", "[]", '{"weight_map": 3}', "\udcff"):
        index.write_text(text, errors="surrogateescape")
        with pytest.raises(RunError, match="weight_map"):
            read_state(index)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("kept", ["a.weight", "b.weight"])
def test_of_tied_tensors_one_is_enough(kept: str, tmp_path: Path) -> None:
    given = {k: torch.randn_like(v) for k, v in Tied().state_dict().items()}
    dropped = {"a.weight": "b.weight", "b.weight": "a.weight"}[kept]
    del given[dropped]
    save_file(given, tmp_path / "w.safetensors")
    model = Tied()
    report = load_foreign(model, tmp_path / "w.safetensors")
    assert torch.equal(model.a.weight, given[kept])
    assert model.a.weight is model.b.weight
    assert (report.kept, report.ignored) == ((), ())
    del given[kept]
    save_file(given, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=r"2 missing: a\.weight, b\.weight"):
        load_foreign(Tied(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("stray", ["criterion.weight", "head.scale", "fc.weight"])
def test_a_stray_tensor_beside_a_wrapper_is_the_only_thing_named(
    stray: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path, model = tmp_path / "w.ckpt", mlp(1)
    wrapped = {f"model.{k}": v for k, v in state.items()}
    torch.save({"state_dict": {**wrapped, stray: torch.ones(3)}, "epoch": 1}, path)
    if stray == "fc.weight":  # another name of the head, so that two would go to one place
        with pytest.raises(RunError, match=r"in the same place: head\.weight"):
            load_foreign(model, path)
        return
    with pytest.raises(
        RunError, match=rf"got 1 unexpected: {stray}; allow_unexpected: \[{stray}\]"
    ):
        load_foreign(model, path)
    load_foreign(model, path, allow_unexpected=[stray])
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


def test_a_body_that_is_called_as_a_wrapper_keeps_its_name(tmp_path: Path) -> None:
    def made() -> nn.Module:
        return nn.ModuleDict({"backbone": nn.Linear(3, 3), "top": nn.Linear(3, 2)})

    given = {k: torch.randn_like(v) for k, v in made().state_dict().items()}
    save_file({**given, "backbone.more": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=r"got 1 unexpected: backbone\.more"):
        load_foreign(made(), tmp_path / "w.safetensors")
