"""Training a network of the user's own code, and opening its run folder only when told to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from greg_cert.cli import main
from greg_cert.config import ExperimentConfig, load_config, parse_config
from greg_cert.data import load_data
from greg_cert.errors import ConfigError, GregCertWarning, RunError
from greg_cert.evaluation import Evaluator
from greg_cert.models import build_model
from greg_cert.models.last_layer import pass_with_features
from greg_cert.runs.networks import made_by
from greg_cert.runs.records import RunFolder, model_sizes, write_config
from greg_cert.runs.subjects import open_subject
from greg_cert.train import fit
from greg_cert.verify import certify

CODE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=8, outputs=10):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))

class Pooled(nn.Module):  # whose logits are of no linear layer
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3))

    def forward(self, x):
        return self.body(x).mean((2, 3))

class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    def train(self, mode=True):
        super().train(mode)
        self[2].eval()
        return self

def text():
    return "no module"
"""
FACTORY = "their_training_nets:Net"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_training_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_training_nets", raising=False)
    return tmp_path


def experiment(model: dict[str, Any], *stages: dict[str, Any], **train: Any) -> ExperimentConfig:
    plain = {"method": "ce", "epochs": 6, "batch_size": 32, "lr": 0.2}
    data = {
        "id": {"source": "digits", "limit": 500},
        "aux": {"source": "uniform", "n": 400},
        "ood": [{"source": "gaussian", "n": 30}],
    }
    listed = [plain, *({**plain, "epochs": 1, "lr": 0.02, **stage} for stage in stages)]
    return parse_config({"data": data, "model": model, "train": {"stages": listed, **train}})


def trained(folder: Path, *stages: dict[str, Any], **model: Any) -> RunFolder:
    config = experiment({"factory": FACTORY, **model}, *stages)
    return fit(config, load_data(config.data), folder / "run")


GREG_PLUS = {"method": "greg+", "m_in": -6.0, "m_out": -3.0, "candidates": 2, "clusters": 16}


@pytest.mark.parametrize("normalize", [False, True])
def test_a_network_of_their_own_is_trained_evaluated_and_certified(
    folder: Path, normalize: bool
) -> None:
    run = trained(folder, GREG_PLUS, normalize=normalize, arguments={"width": 24})
    made = made_by(FACTORY, {"width": 24})
    weights = run.read_weights()
    kept = weights
    if normalize:
        kept = {k.removeprefix("1."): v for k, v in weights.items() if k.startswith("1.")}
    assert kept.keys() == made.state_dict().keys()
    model = run.load_model()
    x = run.load_data().test.pixels([0, 1, 2])
    made.load_state_dict(kept)
    mean, std = run.manifest["model"]["mean"][0], run.manifest["model"]["std"][0]
    expected = made((x - mean) / std if normalize else x)
    torch.testing.assert_close(model(x), expected)
    evaluator = Evaluator(run)
    assert evaluator.eval_acc() > 0.7
    found = certify(model.double(), x.double(), 100.0, max_radius=0.1)
    assert (found.radius_certified > 0).all()


def test_it_is_trained_as_the_same_network_of_ours(folder: Path) -> None:
    """The steps are those of `mlp`, which has the same layers, from the same weights."""
    ours = experiment({"name": "mlp"}, GREG_PLUS)
    splits = load_data(ours.data)
    mlp = build_model("mlp", **model_sizes(splits))
    layers = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    listed = ["nn.Flatten()"]
    for layer in layers:
        listed += [f"nn.Linear({layer.in_features}, {layer.out_features})", "nn.ReLU()"]
    code = f"\ndef mlp():\n    return nn.Sequential({', '.join(listed[:-1])})\n"
    with (folder / "their_training_nets.py").open("a") as stream:
        stream.write(code)
    save_file(mlp.state_dict(), folder / "ours.safetensors")
    theirs = made_by("their_training_nets:mlp", {})
    places = [name for name, m in theirs.named_modules() if isinstance(m, nn.Linear)]
    bare = {
        f"{place}.{kind}": getattr(layer, kind).detach().clone()
        for place, layer in zip(places, layers, strict=True)
        for kind in ("weight", "bias")
    }
    save_file(bare, folder / "theirs.safetensors")
    last = []
    for model, file in (
        ({"name": "mlp"}, "ours.safetensors"),
        ({"factory": "their_training_nets:mlp", "normalize": True}, "theirs.safetensors"),
    ):
        config = experiment(model, GREG_PLUS, init=str(folder / file))
        run = fit(config, splits, folder / file.split(".")[0])
        last.append(run.load_model())
    x = splits.test.pixels()
    torch.testing.assert_close(last[1](x), last[0](x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_batch_norm_stays_frozen_where_their_network_keeps_it_so(
    folder: Path, normalize: bool
) -> None:
    run = trained(
        folder, GREG_PLUS, factory="their_training_nets:Frozen", normalize=normalize, arguments={}
    )
    weights = run.read_weights()
    (mean,) = (v for k, v in weights.items() if k.endswith("running_mean"))
    (variance,) = (v for k, v in weights.items() if k.endswith("running_var"))
    assert (mean == 0).all()
    assert (variance == 1).all()


def test_its_run_folder_runs_no_code_unless_told_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(folder)
    for trust in ((), ("os:system",)):
        with pytest.raises(RunError, match=f"--trust {FACTORY}"):
            open_subject(run.path, trust=trust).load_model()
    assert open_subject(run.path, trust=(FACTORY,)).load_model()
    commands = ["doctor --seconds 0", "evaluate", "config check --data"]
    for command in commands:
        for given, code in (([], 2), (["--trust", FACTORY], 0)):
            line = [*command.split(), str(run.path), *given]
            assert exit_code(line) == code, line
            said = capsys.readouterr().err
            assert (f"--trust {FACTORY}" in said) is (code == 2)


def exit_code(arguments: list[str]) -> int:
    before, sys.argv = sys.argv, ["greg-cert", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def test_a_run_that_has_only_begun_runs_no_code_either(folder: Path) -> None:
    """`config check RUN --data` would make the network of the folder's configuration."""
    config = experiment({"factory": FACTORY})
    begun = RunFolder(folder / "begun")
    begun.path.mkdir()
    write_config(begun, config)
    assert exit_code(["config", "check", str(begun.path), "--data"]) == 2
    assert "their_training_nets" not in sys.modules


def test_other_code_under_the_same_name_is_told(folder: Path) -> None:
    run = trained(folder)
    with (folder / "their_training_nets.py").open("a") as stream:
        stream.write("# another day\n")
    with pytest.warns(GregCertWarning, match="not the one that the run was trained with"):
        RunFolder(run.path, (FACTORY,)).load_model()
    config = experiment({"factory": FACTORY})
    (run.weights_file).unlink()
    with pytest.raises(RunError, match="the code of"):
        fit(config, load_data(config.data), run.path, resume=True)


def test_features_of_any_network_are_what_enters_its_last_linear_layer(folder: Path) -> None:
    net = made_by(FACTORY, {}).eval()
    x = torch.rand(5, 1, 8, 8)
    found = pass_with_features(net, x)
    assert found.layer is net[3]
    torch.testing.assert_close(found.features, nn.Sequential(*list(net)[:3])(x))
    torch.testing.assert_close(found.logits, net(x))
    assert not any(m._forward_hooks for m in net.modules())
    pooled = pass_with_features(made_by("their_training_nets:Pooled", {}), x)
    assert pooled.features is None
    assert pooled.layer is None


def test_networks_without_a_last_linear_layer_train_where_none_is_asked_for(folder: Path) -> None:
    model = {"factory": "their_training_nets:Pooled"}
    energy = {"method": "energy", "m_in": "auto", "m_out": "auto", "strategy": "greedy"}
    config = experiment(model, {**energy, "candidates": 2})
    splits = load_data(config.data)
    assert fit(config, splits, folder / "pooled").complete
    with pytest.raises(RunError, match=r"stages\[1\].strategy: two_ended .* random or greedy"):
        fit(experiment(model, GREG_PLUS), splits, folder / "clustered")


@pytest.mark.parametrize(
    ("model", "stage", "said"),
    [
        ({}, {}, "one of name or factory"),
        ({"factory": FACTORY, "name": "mlp"}, {}, "one of name or factory"),
        ({"name": "mlp", "arguments": {"width": 3}}, {}, "arguments beside factory"),
        ({"name": "mlp", "normalize": True}, {}, "normalize beside factory"),
        ({"factory": FACTORY, "activation": "relu"}, {}, "activation: expected none"),
        ({"factory": FACTORY, "dropout": 0.1}, {}, "dropout: expected none"),
        ({"factory": "no module"}, {}, "factory"),
        (
            {"factory": FACTORY},
            {**GREG_PLUS, "gradient_space": "normalized"},
            r"train.stages\[1\].gradient_space: expected pixel, or model.normalize",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    model: dict[str, Any], stage: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        experiment(model, stage)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"factory": "their_training_nets:missing"}, "missing"),
        ({"factory": "their_training_nets:text"}, "torch.nn.Module"),
        ({"factory": FACTORY, "arguments": {"outputs": 7}}, r"logits \(1, 10\)"),
        ({"factory": "torch.nn:Identity"}, "logits"),
    ],
)
def test_networks_that_do_not_suit_are_refused_before_anything_is_written(
    folder: Path, model: dict[str, Any], said: str
) -> None:
    config = experiment(model)
    with pytest.raises(RunError, match=said):
        fit(config, load_data(config.data), folder / "run")
    assert not (folder / "run").exists()


def test_penalties_of_their_network(folder: Path) -> None:
    run = trained(
        folder,
        {**GREG_PLUS, "gradient_space": "normalized", "lambda_lipschitz": 0.01},
        normalize=True,
    )
    text = (run.path / "config.yaml").read_text()
    assert yaml.safe_load(text)["model"]["factory"] == FACTORY
    assert load_config(run.path / "config.yaml") == run.config
    row = run.metrics_file.read_text().splitlines()[-1]
    assert "lipschitz_estimate" in row
