from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_ood.model import WideResNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from greg_cert.errors import RunError
from greg_cert.models import Classifier, build_model
from greg_cert.runs.weights import load_foreign

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def cifar_resnet18() -> nn.Module:
    """torchvision's ResNet-18 with the stem of the CIFAR code bases."""
    made = models.resnet18(num_classes=10)
    made.conv1, made.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return made


def cifar_densenet() -> nn.Module:
    """torchvision's DenseNet-BC of depth 100 with the stem of the CIFAR code bases."""
    made = models.DenseNet(12, (16, 16, 16), 24, num_classes=10)
    made.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        made.features.set_submodule(name, nn.Identity())
    return made


KUANGLIU = {r"downsample": "shortcut", r"^fc\.": "linear."}
OUTLIER_EXPOSURE = {  # of its DenseNet
    r"^features\.": "",
    r"^conv0": "conv1",
    r"denseblock(\d)\.denselayer(\d+)": lambda m: f"block{m[1]}.layer.{int(m[2]) - 1}",
    r"transition(\d)\.(\w+)": r"trans\1.\g<2>1",
    r"norm5": "bn1",
    r"norm": "bn",
    r"^classifier": "fc",
}


def named(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a network by the names of another code base."""
    state = {}
    for key, value in model.state_dict().items():
        for old, new in names.items():
            key = re.sub(old, new, key)
        state[key] = value
    return state


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, BatchNorm statistics and affine terms random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            owner = model.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.BatchNorm2d) and tensor.is_floating_point():
                if name.endswith(("bias", "running_mean")):
                    tensor.normal_(std=0.2, generator=generator)
                else:
                    tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def ours(name: str, size: int = 8, classes: int = 10, seed: int = 1) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(
            name, num_classes=classes, in_channels=3, image_size=size, mean=MEAN, std=STD
        )
    return model.eval()


def save(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def assert_same_function(model: Classifier, foreign: nn.Module) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    model, foreign = model.double(), foreign.double()
    expected = foreign(model.normalize(x))
    assert expected.std() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-9)


def small(classes: int = 10) -> nn.Module:
    """A foreign network for `wrn16_2`, the smallest one with every kind of name."""
    return shaken(WideResNet(classes, depth=16))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return small().state_dict()


@pytest.mark.parametrize(
    ("name", "build", "names"),
    [
        ("resnet18_32x32", cifar_resnet18, {}),
        ("resnet18_32x32", cifar_resnet18, KUANGLIU),
        ("wrn16_2", lambda: WideResNet(10, depth=16), {}),
        ("wrn40_2", lambda: WideResNet(10), {}),
        ("densenet100", cifar_densenet, OUTLIER_EXPOSURE),
    ],
)
def test_foreign_networks_compute_the_same_here(
    name: str, build: Callable[[], nn.Module], names: Mapping[str, Any], tmp_path: Path
) -> None:
    foreign = shaken(build())
    state = named(foreign, names)
    for suffix in (".safetensors", ".pt"):
        model = ours(name, 32)
        before = [b.clone() for b in model.normalize.buffers()]
        report = load_foreign(model, save(state, tmp_path / f"w{suffix}"))
        assert report.kept == ("normalize.weight", "normalize.bias")
        assert (report.ignored, report.prefix, report.entry) == ((), "", "")
        assert {*report.loaded, *report.kept} == set(model.state_dict())
        assert len(report.loaded) == len(state)
        after = model.normalize.buffers()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert_same_function(model, foreign)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_torchvision_files_load_by_their_own_names(name: str, tmp_path: Path) -> None:
    foreign = shaken(models.get_model(name, num_classes=10))
    model = ours(f"torchvision/{name}", 32)
    report = load_foreign(model, save(foreign.state_dict(), tmp_path / "w.pth"))
    assert report.kept == ("normalize.weight", "normalize.bias")
    assert_same_function(model, foreign)


def test_densenet_files_of_old_have_other_numbers(tmp_path: Path) -> None:
    foreign = shaken(models.get_model("densenet121", num_classes=10))
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v
        for k, v in foreign.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    for file in (old, foreign.state_dict()):
        model = ours("densenet121", 32)
        load_foreign(model, save(file, tmp_path / "w.pth"))
        assert_same_function(model, foreign)


def test_auxiliary_heads_are_ignored_by_name_only(tmp_path: Path) -> None:
    foreign = shaken(models.get_model("googlenet", num_classes=10, init_weights=True))
    path, model = save(foreign.state_dict(), tmp_path / "w.pth"), ours("torchvision/googlenet", 32)
    with pytest.raises(RunError, match=r"unexpected: aux1\.conv"):
        load_foreign(model, path)
    report = load_foreign(model, path, allow_unexpected=["aux1.*", "aux2.*"])
    assert {name.split(".")[0] for name in report.ignored} == {"aux1", "aux2"}
    assert_same_function(model, foreign)


@pytest.mark.parametrize(
    "head", ["fc", "linear", "classifier", "head", "classifier.1", "heads.head"]
)
def test_heads_go_by_many_names(head: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    named = {re.sub(r"^fc\.", f"{head}.", k): v for k, v in state.items()}
    model = ours("wrn16_2")
    load_foreign(model, save(named, tmp_path / "w.pt"))
    assert torch.equal(model.head.weight, state["fc.weight"])
    assert torch.equal(model.head.bias, state["fc.bias"])


def test_another_layer_of_the_body_is_not_taken_for_the_head(tmp_path: Path) -> None:
    model = ours("torchvision/alexnet", 64)
    own = {k.removeprefix("body."): v for k, v in model.state_dict().items() if "body" in k}
    assert "classifier.1.weight" in own  # a hidden layer here, a head elsewhere
    own |= {"classifier.6.weight": torch.ones(10, 4096), "classifier.6.bias": torch.ones(10)}
    report = load_foreign(model, save(own, tmp_path / "w.pt"))
    assert "body.classifier.1.weight" in report.loaded
    assert torch.equal(model.head.weight, torch.ones(10, 4096))


@pytest.mark.parametrize(
    ("prefix", "entry"),
    [
        *((p, "") for p in ("module.", "_orig_mod.", "backbone.", "module._orig_mod.model.")),
        *(("model.", "state_dict"), ("net.", "model"), ("model.", "ema"), ("net.", "params")),
    ],
)
def test_prefixes_and_nesting_come_off(
    prefix: str, entry: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    content: dict[str, Any] = {f"{prefix}{k}": v for k, v in state.items()}
    if entry:
        content = {"epoch": 3, entry: content, "optimizer": {"state": {}, "param_groups": []}}
    model = ours("wrn16_2")
    report = load_foreign(model, save(content, tmp_path / "w.ckpt"))
    assert (report.prefix, report.entry) == (prefix, entry)
    assert torch.equal(model.head.weight, state["fc.weight"])


def test_a_prefix_that_not_all_share_stays(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {f"module.{k}": v for k, v in state.items()}
    path = save({**wrapped, "n_averaged": torch.tensor(3)}, tmp_path / "w.pt")
    said = r"got 1 unexpected: n_averaged; allow_unexpected: \[n_averaged\] leaves them out$"
    with pytest.raises(RunError, match=said):
        load_foreign(ours("wrn16_2"), path)
    report = load_foreign(ours("wrn16_2"), path, allow_unexpected=["n_averaged"])
    assert (report.prefix, report.ignored) == ("module.", ("n_averaged",))


def test_of_two_sets_of_weights_one_must_be_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = small(10).state_dict() | {"fc.bias": torch.full((10,), 7.0)}
    path = save({"model": state, "ema": {"decay": 0.9, "state_dict": other}}, tmp_path / "w.pt")
    model = ours("wrn16_2")
    with pytest.raises(RunError, match=r"weights\.entry: expected one of model, ema\.state_dict,"):
        load_foreign(model, path)
    assert load_foreign(model, path, entry="ema.state_dict").entry == "ema.state_dict"
    assert torch.equal(model.head.bias, other["fc.bias"])
    for wrong in ("nowhere", "ema.decay", "ema", "", "model.fc.weight"):
        with pytest.raises(RunError, match=r"weights\.entry: .*the keys model, ema"):
            load_foreign(model, path, entry=wrong)


def refused(model: Classifier, path: Path, message: str, **options: Any) -> None:
    """The error says `message`, and the model is as it was, to the bit."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RunError, match=message):
        load_foreign(model, path, **options)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_missing_tensor_is_refused_unless_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["block2.layer.1.bn1.weight"]
    path, model = save(state, tmp_path / "w.pt"), ours("wrn16_2")
    refused(model, path, r"^weights: .* but got 1 missing: body\.4\.bn1\.weight$")
    refused(model, path, "1 missing", allow_missing=["head.*", "body.4.bn1.bias"])
    refused(model, path, "1 missing", allow_unexpected=["*"])
    report = load_foreign(model, path, allow_missing=["body.4.*"])
    assert report.kept == ("normalize.weight", "normalize.bias", "body.4.bn1.weight")
    assert "as initialised: body.4.bn1.weight" in report.summary()


def test_an_unexpected_tensor_is_refused_unless_named(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    state |= {f"projection.{i}.weight": torch.ones(2) for i in range(6)}
    path, model = save(state, tmp_path / "w.safetensors"), ours("wrn16_2")
    hint = r"; allow_unexpected: \[projection\.\*\] leaves them out$"
    refused(model, path, r"6 unexpected: (projection\.\d\.weight, ){3}.* and 2 more" + hint)
    refused(model, path, "1 unexpected", allow_unexpected=["projection.[0-4].weight"])
    refused(model, path, "6 unexpected", allow_missing=["*"])
    report = load_foreign(model, path, allow_unexpected=["projection.*"])
    assert len(report.ignored) == 6
    assert "ignored: projection" in report.summary()


def test_a_tensor_of_another_shape_is_refused_unless_named(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    path, model = save(state, tmp_path / "w.pt"), ours("wrn16_2")
    message = r"1 of another shape: body\.0\.weight \(\(16, 1, 3, 3\) for \(16, 3, 3, 3\)\)$"
    refused(model, path, message)
    stem = model.state_dict()["body.0.weight"].clone()
    report = load_foreign(model, path, allow_missing=["body.0.weight"])
    assert report.ignored == ("conv1.weight",)
    assert torch.equal(model.state_dict()["body.0.weight"], stem)


def test_a_head_of_other_classes_is_refused_or_begun_anew(tmp_path: Path) -> None:
    foreign = small(7)
    path, model = save(foreign.state_dict(), tmp_path / "w.pt"), ours("wrn16_2")
    message = r"2 of another shape: head\.weight \(\(7, 128\) .*allow_missing 'head\.\*' begins"
    refused(model, path, message)
    fresh = ours("wrn16_2").head.state_dict()
    report = load_foreign(model, path, allow_missing=["head.*"])
    assert report.kept[-2:] == ("head.weight", "head.bias")
    assert report.ignored == ("fc.weight", "fc.bias")
    assert all(torch.equal(v, fresh[k]) for k, v in model.head.state_dict().items())
    assert "as initialised: head.weight, head.bias" in report.summary()
    model, foreign = model.double(), foreign.double()
    model.head.load_state_dict({"weight": torch.ones(10, 128), "bias": torch.zeros(10)})
    foreign.get_submodule("fc").load_state_dict(
        {"weight": torch.ones(7, 128), "bias": torch.zeros(7)}
    )
    x = torch.rand(2, 3, 32, 32).double()
    torch.testing.assert_close(model(x)[:, :7], foreign(model.normalize(x)))


def test_allowed_to_be_missing_is_loaded_where_it_is_there(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    model = ours("wrn16_2")
    path = save(state, tmp_path / "w.pt")
    report = load_foreign(model, path, allow_missing=["*"], allow_unexpected=["*"])
    assert "head.weight" in report.loaded
    assert torch.equal(model.head.weight, state["fc.weight"])


def test_a_file_without_anything_of_the_body_is_refused(tmp_path: Path) -> None:
    state = {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    path = save(state, tmp_path / "w.pt")
    refused(ours("wrn16_2"), path, "of the model's body in .*, but got none", allow_missing=["*"])


def test_counters_of_old_files_may_be_missing(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    report = load_foreign(ours("wrn16_2"), save(old, tmp_path / "w.pt"))
    counters = [n for n in report.kept if n.endswith("num_batches_tracked")]
    assert len(counters) == len(state) - len(old)
    assert "num_batches" not in report.summary()


def test_our_own_files_load_whole_with_their_normalisation(tmp_path: Path) -> None:
    saved, model = shaken(ours("wrn16_2", seed=5)), ours("wrn16_2")
    saved.normalize.weight.mul_(2.0)  # type: ignore[operator, union-attr]
    own = saved.state_dict()
    report = load_foreign(model, save(own, tmp_path / "model.safetensors"))
    assert report.loaded == tuple(own)
    assert (report.kept, report.ignored) == ((), ())
    assert all(torch.equal(own[k], v) for k, v in model.state_dict().items())
    for gone in (["normalize.weight", "normalize.bias"], ["normalize.weight"]):
        rest = {k: v for k, v in own.items() if k not in gone}
        path = save(rest, tmp_path / "part.safetensors")
        refused(ours("wrn16_2"), path, f"{len(gone)} missing: normalize")


def test_module_paths_are_renamed_first(state: dict[str, Tensor], tmp_path: Path) -> None:
    odd = {re.sub(r"^fc\.", "predict.", f"{k}"): v for k, v in state.items()}
    odd = {f"student.{k}" if "predict" not in k else k: v for k, v in odd.items()}
    path, model = save(odd, tmp_path / "w.pt"), ours("wrn16_2")
    refused(model, path, "unexpected: ")
    load_foreign(model, path, rename=[("student", ""), ("predict", "head")])
    assert torch.equal(model.head.weight, state["fc.weight"])
    refused(
        model,
        path,
        r"weights\.rename: .* got 'pred'",
        rename=[("student", ""), ("predict", "head"), ("pred", "x")],
    )


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("fc.bias", "text", r"head\.bias \(.*a str"),
        # As many numbers, and they would broadcast.
        ("fc.bias", torch.zeros(1, 10), r"head\.bias \(.*\(1, 10\) for \(10,\)"),
        ("fc.bias", torch.zeros(()), r"head\.bias \(.*\(\) for \(10,\)"),
        ("fc.bias", torch.zeros(10).long(), r"head\.bias \(.*torch.int64 for torch.float32"),
        ("fc.bias", torch.zeros(10, dtype=torch.complex64), r"head\.bias \(.*torch.complex64"),
        ("fc.bias", torch.zeros(10).to_sparse(), r"head\.bias \(.*dense"),
        ("fc.bias", torch.zeros(10, device="meta"), r"head\.bias \(.*dense"),
        ("linear.weight", torch.zeros(10, 128),
         r"1 in the same place: head\.weight from fc\.weight and linear\.weight"),
        ("normalize.weight", torch.ones(3, 1, 1, 1), r"1 missing: normalize\.bias$"),
    ],
)  # fmt: skip
def test_only_ordinary_tensors_are_taken_one_for_each_place(
    name: str, value: Any, why: str, state: dict[str, Any], tmp_path: Path
) -> None:
    refused(ours("wrn16_2"), save({**state, name: value}, tmp_path / "w.pt"), why)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(
    dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    model = ours("wrn16_2")
    load_foreign(model, save(stored, tmp_path / "w.pt"))
    assert torch.equal(model.head.weight, stored["fc.weight"].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused(
    value: float, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["bn1.running_var"] = state["bn1.running_var"].double()
    state["bn1.running_var"][5] = value
    path, model = save(state, tmp_path / "w.pt"), ours("wrn16_2")
    refused(model, path, r"NaN or infinity in body\.\d+\.running_var$", allow_missing=["*"])


class MakesFolder:
    """What a hostile file does: its unpickling calls a function of its choice."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "state_dict"])
def test_code_in_a_file_is_never_run(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    mark, path = tmp_path / "was-here", tmp_path / "w.pt"
    content: Mapping[str, Any] = {**state, "extra": MakesFolder(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif kind == "state_dict":
        torch.save({"state_dict": state, "args": MakesFolder(mark)}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refused(ours("wrn16_2"), path, r"^weights: expected (tensors only|a whole checkpoint)")
    refused(ours("wrn16_2"), path, "^weights", allow_unexpected=["*"], allow_missing=["*"])
    assert not mark.exists()
    if kind != "pickle":
        torch.load(path, weights_only=False)
        assert mark.exists()  # the file is as hostile as it should be


def test_code_is_named_and_no_way_around_is_offered(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(RunError, match=r"asks for torch\.nn\.modules\.linear\.Linear") as error:
        load_foreign(ours("mlp"), tmp_path / "w.pt")
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of TorchScript
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    with pytest.raises(RunError, match="asks for a TorchScript program"):
        load_foreign(ours("mlp"), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt"])
def test_a_truncated_file_is_refused(suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if "legacy" in suffix:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        save(state, path)
    model, whole = ours("wrn16_2"), path.read_bytes()
    load_foreign(model, path)
    for share in (0.0, 0.0001, 0.01, 0.5, 0.999, 0.99999):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(model, path, r"^weights: expected a (whole|readable)")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    model = ours("mlp")
    refused(model, tmp_path / "none.pt", "expected a checkpoint file, but got .*none.pt")
    refused(model, tmp_path, "expected a checkpoint file")
    (tmp_path / "text.pt").write_text("hello world, not a checkpoint")
    refused(model, tmp_path / "text.pt", "whole checkpoint of torch.save")
    (tmp_path / "text.safetensors").write_text("hello world, not a checkpoint")
    refused(model, tmp_path / "text.safetensors", "readable safetensors file")
    (tmp_path / "w.h5").write_text("")
    refused(model, tmp_path / "w.h5", r"file named \.safetensors, \.pt, .*w\.h5")
    contents: list[tuple[Any, str]] = [
        ([torch.ones(2)], "got a list"),
        ({}, "got nothing"),
        ({"epoch": 3, "model": None}, "got the keys epoch, model"),
        ({1: torch.ones(2)}, "got the keys 1"),
    ]
    for content, message in contents:
        refused(model, save(content, tmp_path / "w.pt"), message)


def test_networks_whose_names_are_alike_are_refused(tmp_path: Path) -> None:
    def unfit(name: str, state: dict[str, Tensor], message: str) -> None:
        refused(ours(name), save(state, tmp_path / "w.pt"), message)

    # kuangliu's DenseNet puts new maps first, so its weights mean something else in the same shape.
    dense = named(cifar_densenet(), OUTLIER_EXPOSURE)
    theirs = {k.replace("block", "dense").replace(".layer", ""): v for k, v in dense.items()}
    unfit("densenet100", theirs, "missing: .*unexpected: dense1")
    # A pre-activation ResNet has no BatchNorm behind the stem and none in the projection.
    pre = named(cifar_resnet18(), KUANGLIU)
    pre = {k: v for k, v in pre.items() if not re.match(r"bn1|.*shortcut\.1", k)}
    unfit("resnet18_32x32", pre, r"missing: body\.1\.weight")
    # torchvision's ResNet-18 has a stem of 7×7.
    large = models.get_model("resnet18", num_classes=10).state_dict()
    unfit("resnet18_32x32", large, r"1 of another shape: body\.0\.weight \(\(64, 3, 7, 7\)")
    unfit("wrn16_2", WideResNet(10).state_dict(), r"unexpected: block1\.layer\.2")
    unfit("wrn40_2", small().state_dict(), r"missing: body\.3\.")


def test_the_report_names_the_file_and_fits_into_a_manifest(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = save({"state_dict": state}, tmp_path / "w.pth")
    report = load_foreign(ours("wrn16_2"), str(path))
    assert report.path == path
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["entry"] == "state_dict"
    assert plain["kept"] == ["normalize.weight", "normalize.bias"]
    assert report.summary().startswith(f"{len(state)} tensors from {path}; normalisation follows")
