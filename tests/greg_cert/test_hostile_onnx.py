"""ONNX files that somebody has changed: read as they are, or refused in one line."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import damaged, examples, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from greg_cert.errors import GregCertError, RunError, UnsupportedModelError
from greg_cert.models.onnx.file import read_onnx

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 7, 10**6, 10**9, 2**62])
KINDS = ("Add", "Gemm", "Conv", "Reshape", "Expand", "Tile", "Pad", "Concat", "Transpose", "Slice")


@functools.cache
def exported() -> bytes:
    layers = (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another exporter is to be preferred
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            nn.Sequential(*layers).eval(), (torch.rand(2, 1, 6, 6),), path, dynamo=False,
            input_names=["x"], dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
        return path.read_bytes()


@st.composite
def changed_graphs(draw: st.DrawFn) -> bytes:
    """The exported file with one to three of its fields changed."""
    model = onnx.load_model_from_string(exported())
    graph = model.graph
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(list(graph.node)))
        weight = draw(st.sampled_from(list(graph.initializer)))
        number = draw(NUMBERS)
        match draw(
            st.sampled_from(("attribute", "kind", "input", "image", "shape", "type", "raw"))
        ):
            case "attribute" if node.attribute:
                attribute = draw(st.sampled_from(list(node.attribute)))
                attribute.i = number
                attribute.ints[:1] = [number]
            case "kind":
                node.op_type = draw(st.sampled_from(KINDS))
            case "input":
                names = [name for other in graph.node for name in (*other.input, *other.output)]
                node.input[0] = draw(st.sampled_from(names))
            case "image":
                sizes = list(graph.input[0].type.tensor_type.shape.dim)
                draw(st.sampled_from(sizes)).dim_value = number
            case "shape":
                weight.dims[0] = number
            case "type":
                weight.data_type = draw(st.integers(1, 20))
            case "raw":
                weight.raw_data = draw(st.binary(max_size=8))
    return bytes(model.SerializeToString())


@examples(120)
@given(changed_graphs() | st.deferred(lambda: damaged(exported())))
def test_files_that_were_changed(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(content)
    works_or_refuses(lambda: read_onnx(path))


def written(path: Path, nodes: list[Any], weights: dict[str, Any], side: int = 2) -> Path:
    """A file of nodes from images `x` (B, 1, side, side) to `y`."""
    shape = ("batch", 1, side, side)
    ends = (("x", shape), ("y", ("batch", "k")))
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in ends)
    stored = [numpy_helper.from_array(torch.tensor(v).numpy(), k) for k, v in weights.items()]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Flatten", ["x"], ["y"])], "g", [x], [y], stored
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def endless() -> Any:
    """A loop over constants that would take centuries."""
    kinds = {"i": onnx.TensorProto.INT64, "on": onnx.TensorProto.BOOL, "v": onnx.TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info(f"{n}_", kinds[n], []) for n in ("on", "v")]
    same = [helper.make_node("Identity", [name], [f"{name}_"]) for name in ("on", "v")]
    body = helper.make_graph(same, "body", inputs, outputs)
    return helper.make_node("Loop", ["times", "yes", "one"], ["c"], body=body, name="endless")


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (helper.make_node("ConstantOfShape", ["n"], ["c"], name="c"), {"n": [10**5, 10**5]}),
        (helper.make_node("Expand", ["v", "n"], ["c"], name="c"), {"v": [1.0], "n": [10**10]}),
        (helper.make_node("Tile", ["v", "n"], ["c"], name="c"), {"v": [1.0] * 4, "n": [10**9]}),
        (
            helper.make_node("Range", ["a", "b", "d"], ["c"], name="c"),
            {"a": 0, "b": 10**12, "d": 1},
        ),
        (helper.make_node("Pad", ["v", "n"], ["c"], name="c"), {"v": [1.0], "n": [0, 10**10]}),
    ],
)
def test_constants_larger_than_memory(tmp_path: Path, node: Any, weights: dict[str, Any]) -> None:
    path = written(tmp_path / "net.onnx", [node], weights)
    with pytest.raises(UnsupportedModelError, match=r"'c' .*more than 67,108,864 values"):
        read_onnx(path)


def test_a_constant_that_is_computed_without_end(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", [endless()], {"times": 2**62, "yes": True, "one": 1.0})
    with pytest.raises(UnsupportedModelError, match=r"'endless' .*may never end"):
        read_onnx(path)


def test_images_larger_than_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "net.onnx", [], {}, side=10**6)
    with pytest.raises(RunError, match="at most 67,108,864 values"):
        read_onnx(path)


def test_weights_of_another_size_than_their_shape(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(exported())
    model.graph.initializer[0].dims[0] = 1
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GregCertError, match=r"weight .* cannot be read"):
        read_onnx(path)
