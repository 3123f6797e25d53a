"""Models from elsewhere: described in a file, made by a factory, evaluated and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from greg_cert.config import load_any, load_own_model
from greg_cert.config.own_model import OwnModelConfig
from greg_cert.data.load import load_data
from greg_cert.errors import ConfigError, RunError
from greg_cert.evaluation import Evaluator, evaluate_model
from greg_cert.runs.own_model import OwnModel, made_by
from greg_cert.runs.subjects import common_data, open_subject

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=8, classes=10):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))

def build(width):
    torch.manual_seed(5)
    return Net(width)

def wrong():
    return "a text"

def fails():
    raise ValueError("no such width")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's, which is the current one."""
    (tmp_path / "their_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "their_nets", raising=False)
    return tmp_path


def describe(folder: Path, model: dict[str, Any], **more: Any) -> Path:
    path = folder / "mine.yaml"
    data = {"id": {"source": "digits", "limit": 300}, "ood": [{"source": "uniform", "n": 20}]}
    path.write_text(yaml.safe_dump({"data": data, "model": model, **more}))
    return path


def test_factory_arguments_and_weights_make_the_model(folder: Path) -> None:
    made = made_by("their_nets:build", {"width": 12})
    weights = {k: torch.full_like(v, 0.25) for k, v in made.state_dict().items()}
    save_file(weights, folder / "w.safetensors")
    path = describe(
        folder,
        {"factory": "their_nets:Net", "arguments": {"width": 12}, "weights": "w.safetensors"},
        name="theirs",
    )
    subject = open_subject(path)
    assert isinstance(subject, OwnModel)
    model = subject.load_model()
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert (subject.config.title, subject.config.network) == ("theirs", "their_nets:Net")
    assert subject.manifest["data"] == subject.load_data().fingerprints()
    assert subject.manifest["init"]["sha256"]


def test_normalisation_in_front(folder: Path) -> None:
    plain = describe(folder, {"factory": "their_nets:build", "arguments": {"width": 4}})
    bare = open_subject(plain).load_model()
    raw = {"factory": "their_nets:build", "arguments": {"width": 4}, "normalize": True}
    subject = open_subject(describe(folder, raw))
    splits = subject.load_data()
    x = splits.test.pixels([0, 1])
    expected = bare((x - splits.mean[0]) / splits.std[0])
    torch.testing.assert_close(subject.load_model()(x), expected)


def test_evaluator_agrees_with_evaluate_model(folder: Path) -> None:
    path = describe(folder, {"factory": "their_nets:build", "arguments": {"width": 6}})
    found = Evaluator(path)
    direct = evaluate_model(OwnModel(path).load_model(), found.data)
    assert found.threshold() == direct.threshold
    assert found.eval_acc() == direct.id_accuracy
    assert found.eval_ood().loc["uniform"].to_dict() == pytest.approx(direct.ood["uniform"])


def test_data_shared_with_another_description(folder: Path) -> None:
    path = describe(folder, {"factory": "their_nets:build", "arguments": {"width": 6}})
    other = folder / "other.yaml"
    text = path.read_text().replace("limit: 300", "limit: 310")
    other.write_text(text)
    subjects = [open_subject(path), open_subject(path)]
    assert len(common_data(subjects).test) == len(load_data(subjects[0].config.data).test)
    with pytest.raises(RunError, match="differs"):
        common_data([open_subject(path), open_subject(other)])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"factory": "their_nets:missing"}, "their_nets:missing"),
        ({"factory": "no_such_module:build"}, "no_such_module"),
        ({"factory": "their_nets:wrong"}, "Module"),
        ({"factory": "their_nets:fails"}, "no such width"),
        ({"factory": "their_nets:build", "arguments": {"depth": 3}}, "depth"),
        ({"factory": "their_nets:Net", "arguments": {"classes": 7}}, "(1, 10)"),
        ({"factory": "their_nets:Net", "weights": "none.pt"}, "none.pt"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(
    folder: Path, model: dict[str, Any], said: str
) -> None:
    with pytest.raises(RunError) as caught:
        open_subject(describe(folder, model)).load_model()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({}, "one of name or factory"),
        ({"factory": "a:b", "name": "mlp"}, "one of name or factory"),
        ({"name": "mlp"}, "weights"),
        ({"name": "mpl", "weights": "w.pt"}, "mlp"),
        ({"factory": "os.system"}, "factory"),
        ({"factory": "a:b", "wieghts": "w.pt"}, "weights"),
        ({"onnx": "net.onnx", "factory": "a:b"}, "onnx"),
        ({"onnx": "net.onnx", "weights": "w.pt"}, "weights"),
        ({"onnx": "net.onnx", "arguments": {"a": 1}}, "arguments"),
    ],
)
def test_descriptions_are_checked(folder: Path, model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="model") as caught:
        load_own_model(describe(folder, model))
    assert said in str(caught.value)


def test_the_two_kinds_of_file_are_told_apart(folder: Path) -> None:
    assert isinstance(load_any(describe(folder, {"factory": "a:b"})), OwnModelConfig)
    with pytest.raises(ConfigError, match="train: required"):
        load_any(describe(folder, {"name": "mlp"}))


def test_other_ood_sets_for_a_subject(folder: Path) -> None:
    path = describe(folder, {"factory": "their_nets:build", "arguments": {"width": 6}})
    plain = open_subject(path)
    other = open_subject(path, ["data.ood=[{source: gaussian, n: 9}]"])
    assert list(common_data([other]).ood) == ["gaussian"]
    assert other.manifest["data"].keys() ^ plain.manifest["data"].keys() == {
        "ood/uniform",
        "ood/gaussian",
    }
    assert other.weights_digest == plain.weights_digest
    assert Evaluator(other).threshold() == Evaluator(plain).threshold()
    assert list(Evaluator(other).detection().sets) == ["gaussian"]
    with pytest.raises(RunError, match="differs"):
        common_data([other, plain])
    for text in ("data.id.limit=9", "verify.norm=2", "model.factory=a:b"):
        with pytest.raises(ConfigError, match=r"data\.ood"):
            open_subject(path, [text])
    with pytest.raises(ConfigError, match="source"):
        open_subject(path, ["data.ood=[{source: nothing}]"]).load_data()
