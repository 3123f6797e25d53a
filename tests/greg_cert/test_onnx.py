"""ONNX files: networks come back as they were, and what cannot is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from greg_cert.config import load_any
from greg_cert.config.own_model import OwnModelConfig
from greg_cert.errors import RunError, UnsupportedModelError
from greg_cert.models import build_model
from greg_cert.models.onnx.file import read_onnx
from greg_cert.models.onnx.layers import HANDLERS
from greg_cert.runs.subjects import open_subject
from greg_cert.scores import energy
from greg_cert.verify import certify
from greg_cert.verify.graph.ops import forward_all
from greg_cert.verify.graph.trace import trace_model

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def export(model: nn.Module, path: Path, shape: tuple[int, ...], *, batch: int = 0) -> Path:
    """The model in a file; `batch` 0 is a dynamic axis. The exporter is the one that is fast."""
    axes = None if batch else {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another exporter is to be preferred
        torch.onnx.export(
            model, (torch.rand(batch or 2, *shape),), path, dynamo=False,
            input_names=["x"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return path


def written(
    path: Path,
    nodes: list[Any],
    weights: dict[str, Tensor | np.ndarray[Any, Any]],
    shape: tuple[Any, ...] = ("batch", 2, 7, 6),
    opset: int = 17,
    inputs: tuple[str, ...] = ("x",),
) -> Path:
    """A file of these nodes, from `x` to `y`."""
    info = [helper.make_tensor_value_info(i, onnx.TensorProto.FLOAT, shape) for i in inputs]
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("b", "k"))
    arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in weights.items()}
    stored = [numpy_helper.from_array(v, k) for k, v in arrays.items()]
    graph = helper.make_graph(nodes, "net", info, [out], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def trained(name: str, channels: int, size: int) -> nn.Module:
    """A network of the registry whose BatchNorm statistics have moved."""
    torch.manual_seed(3)
    model = build_model(
        name, num_classes=10, in_channels=channels, image_size=size,
        mean=[0.4] * channels, std=[0.2] * channels,
    )  # fmt: skip
    with torch.no_grad():
        model(torch.rand(8, channels, size, size))
    return model.eval()


@pytest.mark.parametrize("name", ["mlp", "lip_cnn", "liresnet", "wrn16_2"])
def test_our_networks_come_back(tmp_path: Path, name: str) -> None:
    model = trained(name, 3, 8)
    found = read_onnx(export(model, tmp_path / "net.onnx", (3, 8, 8)))
    assert (found.image_shape, found.num_classes) == ((3, 8, 8), 10)
    x = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        expected, got = model(x), found.module(x)
    if name == "wrn16_2":  # the exporter folds BatchNorm into convolutions, in float32
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(got, expected)
    ours, theirs = trace_model(model, (3, 8, 8)), trace_model(found.module, (3, 8, 8))
    assert [type(n.op) for n in theirs.nodes] == [type(n.op) for n in ours.nodes]


def test_certificates_are_those_of_the_network(tmp_path: Path) -> None:
    model = trained("mlp", 1, 6).double()
    found = read_onnx(export(model.float(), tmp_path / "net.onnx", (1, 6, 6))).module
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    gamma = float(energy(model.double()(x).detach()).min()) + 0.5
    ours = certify(model, x, gamma, method="crown", attack=False)
    theirs = certify(found, x, gamma, method="crown", attack=False)
    assert (ours.radius_certified > 0).any()
    torch.testing.assert_close(theirs.radius_certified, ours.radius_certified)


class Dividing(nn.Module):
    """Normalisation as people write it, and a flattening by the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.head = nn.Linear(2 * 25, 5)
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv((x - self.mean) / 0.25))
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("batch", [0, 1])
def test_normalisation_inside_and_one_image_files(tmp_path: Path, batch: int) -> None:
    torch.manual_seed(1)
    model = Dividing().eval()
    found = read_onnx(export(model, tmp_path / "net.onnx", (3, 5, 5), batch=batch))
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), model(x))
        graph = trace_model(found.module, (3, 5, 5))
        values = forward_all(graph, x.double())[-1]
        torch.testing.assert_close(values, model.double()(x.double()), rtol=1e-6, atol=1e-6)


def test_graphs_as_the_newer_exporter_writes_them(tmp_path: Path) -> None:
    """Axes as operands, sizes as constants that 0 is a size for."""
    weight, head = torch.randn(4, 2, 3, 3), torch.randn(5, 4)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["m"], keepdims=1),
        helper.make_node("Reshape", ["m", "sizes"], ["f"], allowzero=1),
        helper.make_node("Gemm", ["f", "h", "b"], ["y"], transB=1, alpha=2.0, beta=0.5),
    ]
    bias = torch.randn(5)
    sizes = {"axes": np.array([-1, -2]), "sizes": np.array([-1, 4])}
    path = written(tmp_path / "net.onnx", nodes, {"w": weight, "h": head, "b": bias, **sizes},
                   opset=20)  # fmt: skip
    model = read_onnx(path).module
    x = torch.randn(3, 2, 7, 6)
    expected = 2.0 * F.conv2d(x, weight).mean((2, 3)) @ head.T + 0.5 * bias
    torch.testing.assert_close(model(x), expected)
    trace_model(model, (2, 7, 6))


def one(operation: str, *operands: str, **attributes: Any) -> list[Any]:
    """An operation on the image."""
    return [helper.make_node(operation, ["x", *operands], ["c"], **attributes)]


HEAD = [
    helper.make_node("GlobalAveragePool", ["c"], ["p"]),
    helper.make_node("Flatten", ["p"], ["y"]),
]
W = torch.arange(36.0).reshape(2, 2, 3, 3).sin()
CHANNEL, VAR = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
SLOPES = torch.tensor([0.1, -0.3]).reshape(2, 1, 1)
POOL = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (one("Conv", "w", pads=[0, 1, 2, 0], strides=[2, 1]),
         lambda x: F.conv2d(F.pad(x, (1, 0, 0, 2)), W, stride=(2, 1))),
        (one("Conv", "w", auto_pad="SAME_UPPER", strides=[2, 2]),
         lambda x: F.conv2d(F.pad(x, (0, 1, 1, 1)), W, stride=2)),
        (one("Conv", "w", auto_pad="SAME_LOWER", strides=[2, 2]),
         lambda x: F.conv2d(F.pad(x, (1, 0, 1, 1)), W, stride=2)),
        (
            [
                helper.make_node("Pad", ["x", "pads"], ["q"]),
                helper.make_node("Conv", ["q", "w"], ["c"], dilations=[2, 1]),
            ],
            lambda x: F.conv2d(F.pad(x, (3, 0, 0, 1)), W, dilation=(2, 1)),
        ),
        (
            [
                helper.make_node("Clip", ["x", "", "two"], ["q"]),
                helper.make_node("Clip", ["q", "zero"], ["r"]),
                helper.make_node("Neg", ["r"], ["c"]),
            ],
            lambda x: -x.clamp(max=2.0).clamp(min=0),
        ),
        (
            [
                helper.make_node("Split", ["x", "ones"], ["m", "n"], axis=1),
                helper.make_node("Max", ["m", "n"], ["r"]),
                helper.make_node("Min", ["n", "m"], ["s"]),
                helper.make_node("Concat", ["s", "r"], ["c"], axis=-3),
            ],
            lambda x: x.sort(1).values,
        ),
        (
            [
                helper.make_node("Slice", ["x", "minus", "far", "one"], ["m"]),
                helper.make_node("Slice", ["x", "minus", "far", "one", "one"], ["n"]),
                helper.make_node("Concat", ["m", "n"], ["c"], axis=1),
            ],
            lambda x: x[:, [1, 1]],
        ),
        (
            [
                helper.make_node("Sigmoid", ["x"], ["g"]),
                helper.make_node("Mul", ["g", "x"], ["q"]),
                helper.make_node("Sum", ["q", "x", "slopes"], ["c"]),
            ],
            lambda x: F.silu(x) + x + SLOPES,
        ),
        (one("BatchNormalization", "channel", "channel", "channel", "var"),
         lambda x: F.batch_norm(x, CHANNEL, VAR, CHANNEL, CHANNEL)),
        (one("AveragePool", **POOL),
         lambda x: F.avg_pool2d(x, (3, 2), (2, 1), 1, count_include_pad=False)),
        (one("MaxPool", **POOL), lambda x: F.max_pool2d(x, (3, 2), (2, 1), 1)),
        (one("GlobalMaxPool"), lambda x: x.amax((2, 3), keepdim=True)),
        (one("Cast", to=1), lambda x: x),
        (one("Dropout"), lambda x: x),
        (one("Div", "two"), lambda x: x / 2),
        (one("Sub", "two"), lambda x: x - 2),
        (one("Elu", alpha=0.5), lambda x: F.elu(x, 0.5)),
        (one("Gelu", approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
        (one("LeakyRelu", alpha=0.2), lambda x: F.leaky_relu(x, 0.2)),
        (one("PRelu", "slopes"), lambda x: torch.where(x > 0, x, SLOPES * x)),
        (one("Softplus"), F.softplus),
        (one("Tanh"), torch.tanh),
    ],
)  # fmt: skip
def test_operations_mean_what_they_say(
    tmp_path: Path, nodes: list[Any], expected: Callable[[Tensor], Tensor]
) -> None:
    weights = {
        "w": W,
        "pads": np.array([0, 0, 0, 3, 0, 0, 1, 0]),
        "zero": torch.tensor(0.0),
        "two": torch.tensor(2.0),
        "channel": CHANNEL,
        "var": VAR,
        "slopes": SLOPES,
        "ones": np.array([1, 1]),
        "one": np.array([1]),
        "minus": np.array([-1]),
        "far": np.array([2**62]),
    }
    model = read_onnx(written(tmp_path / "net.onnx", [*nodes, *HEAD], weights, opset=20)).module
    x = torch.randn(5, 2, 7, 6)
    torch.testing.assert_close(model(x), expected(x).mean((2, 3)), rtol=1e-5, atol=1e-5)


LINEAR = torch.arange(10.0).reshape(2, 5).cos()


@pytest.mark.parametrize(
    ("chain", "operand", "expected"),
    [
        (("GlobalAveragePool", "Squeeze"), np.array([-1, 2]), lambda m: m),
        (("GlobalAveragePool", "Flatten", "Unsqueeze", "Flatten"), np.array([2, 3]), lambda m: m),
        (("ReduceMean", "Flatten", "MatMul"), LINEAR, lambda m: m @ LINEAR),
        (("ReduceMean", "Flatten", "Gemm"), LINEAR, lambda m: m @ LINEAR),
    ],
)
def test_changes_of_shape_and_products(
    tmp_path: Path, chain: tuple[str, ...], operand: Any, expected: Callable[[Tensor], Tensor]
) -> None:
    wants = {"Squeeze", "Unsqueeze", "MatMul", "Gemm"}
    places = ["x", *(f"v{i}" for i in range(len(chain) - 1)), "y"]
    nodes = [
        helper.make_node(
            operation, [before, "operand"] if operation in wants else [before], [after],
            **({"axes": [2, 3]} if operation == "ReduceMean" else {}),
        )
        for operation, before, after in zip(chain, places, places[1:], strict=False)
    ]  # fmt: skip
    x = torch.randn(5, 2, 7, 6)
    found = read_onnx(written(tmp_path / "net.onnx", nodes, {"operand": operand})).module(x)
    torch.testing.assert_close(found, expected(x.mean((2, 3))), rtol=1e-5, atol=1e-5)


def refused(nodes: list[Any], why: str, **more: Any) -> Any:
    return pytest.param(nodes, why, more, id=why)


@pytest.mark.parametrize(
    ("nodes", "why", "more"),
    [
        refused([helper.make_node("Softmax", ["x"], ["y"], name="z")], "'z' .Softmax.*logits"),
        refused([helper.make_node("Selu", ["x"], ["y"], name="odd")], "'odd' .Selu"),
        refused([helper.make_node("Conv", ["x", "w"], ["y"], name="odd", auto_pad="SAME_UPPER",
                                  dilations=[1, 2], strides=[2, 2])], "'odd' .Conv.*dilated"),
        refused([helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect")], "reflect"),
        refused([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], "channels first"),
        refused([helper.make_node("Reshape", ["x", "pair"], ["y"])], "mixes the samples"),
        refused([helper.make_node("Flatten", ["x"], ["y"], axis=2)], "from axis 2"),
        refused([helper.make_node("Split", ["x"], ["y", "z"], axis=2)], "divides axis 2"),
        refused([helper.make_node("Slice", ["x", "one", "two", "two"], ["y"])], "divides axis 2"),
        refused([helper.make_node("Slice", ["x", "pair", "pair"], ["y"])], "expected one axis"),
        refused([helper.make_node("Slice", ["x", "two", "one", "one"], ["y"])], "no channel"),
        refused([helper.make_node("Max", ["x", "w"], ["y"])], "computed from the image"),
        refused([helper.make_node("Identity", ["x"], ["y"])], "logits .B, K."),
        refused([helper.make_node("Relu", ["w"], ["y"])], "constant"),
        refused([helper.make_node("Flatten", ["x"], ["y"])], "batch axis", shape=(4, 2, 7, 6)),
        refused([helper.make_node("Flatten", ["x"], ["y"])], "fixed C, H and W",
                shape=("b", 2, "h", 6)),
        refused([helper.make_node("Flatten", ["x"], ["y"])], "fixed C, H and W", shape=("b", 84)),
        refused([helper.make_node("Flatten", ["x"], ["y"])], "operator set 9", opset=8),
        refused([helper.make_node("Add", ["x", "z"], ["y"])], "one input", inputs=("x", "z")),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, nodes: list[Any], why: str, more: dict[str, Any]
) -> None:
    weights = {"w": W, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pair": np.array([-1, 12]),
               "one": np.array([1]), "two": np.array([2])}  # fmt: skip
    path = written(tmp_path / "net.onnx", nodes, weights, **more)
    with pytest.raises((RunError, UnsupportedModelError), match=why) as caught:
        read_onnx(path)
    assert str(caught.value).startswith("model.onnx: ")
    assert "\n" not in str(caught.value)


def test_a_wrong_translation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(trained("mlp", 1, 4), tmp_path / "net.onnx", (1, 4, 4))
    monkeypatch.setitem(HANDLERS, "Relu", lambda s: s.layer(nn.LeakyReLU(0.01)))
    with pytest.raises(RunError, match="those of the file"):
        read_onnx(path)


def test_damaged_missing_and_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(RunError, match="valid ONNX file"):
        read_onnx(path)
    path.write_bytes(b"not a network")
    with pytest.raises(RunError, match="valid ONNX file"):
        read_onnx(path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(RunError, match=r"pip install 'greg-cert\[onnx\]'"):
        read_onnx(path)


def described(folder: Path, **model: Any) -> Path:
    path = folder / "mine.yaml"
    data = {"id": {"source": "digits", "limit": 300}, "ood": [{"source": "uniform", "n": 20}]}
    path.write_text(yaml.safe_dump({"data": data, "model": model}))
    return path


def test_a_description_names_the_file(tmp_path: Path) -> None:
    export(trained("cnn_small", 1, 8), tmp_path / "net.onnx", (1, 8, 8))
    path = described(tmp_path, onnx="net.onnx")
    assert isinstance(load_any(path), OwnModelConfig)
    subject = open_subject(path)
    assert (subject.config.title, subject.config.network) == ("net", "net.onnx")
    model, splits = subject.load_model(), subject.load_data()
    x = splits.test.pixels([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained("cnn_small", 1, 8)(x))
    made = subject.manifest["init"]
    assert (made["path"], made["num_classes"]) == (str(tmp_path / "net.onnx"), 10)
    assert len(made["sha256"]) == 64
    # The same tensors in other layers are another network.
    proto = onnx.load(str(tmp_path / "net.onnx"))
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Softplus"
    onnx.save(proto, str(tmp_path / "net.onnx"))
    assert open_subject(path).weights_digest != subject.weights_digest
    inside = open_subject(path).load_model()
    normalised = open_subject(described(tmp_path, onnx="net.onnx", normalize=True)).load_model()
    with torch.no_grad():
        expected = inside((x - splits.mean[0]) / splits.std[0])
        torch.testing.assert_close(normalised(x), expected)


def test_files_for_other_data_are_refused(tmp_path: Path) -> None:
    export(trained("mlp", 1, 6), tmp_path / "net.onnx", (1, 6, 6))
    with pytest.raises(RunError, match=r"images of the data, \(1, 8, 8\)"):
        open_subject(described(tmp_path, onnx="net.onnx")).load_model()
