"""The graph of an ONNX file, walked once into a torch module of plain layers.

What does not depend on the image is computed by ONNX's own reference implementation. Shapes are
told from the batch by walking with two probes, of two and of three images: what differs is the
batch axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from greg_cert.errors import UnsupportedModelError
from greg_cert.models.onnx.layers import HANDLERS
from greg_cert.models.onnx.step import MOST, PROBES, Array, Known, State, Step, Traced


def translate(
    model: Any, name: str, image_shape: tuple[int, ...], opset: int, *, fixed_batch: bool
) -> fx.GraphModule:
    """The torch module of a checked `onnx.ModelProto` of one input and one output.

    The input `name` takes images of `image_shape` (C, H, W); one at a time with `fixed_batch`.

    Raises:
        UnsupportedModelError: names the first operation that cannot be read.
    """
    state = State(fixed_batch, opset)
    for tensor in model.graph.initializer:
        state.values[tensor.name] = Known((_stored(tensor),) * len(PROBES))
    generator = torch.Generator().manual_seed(0)
    probes = tuple(torch.rand(n, *image_shape, generator=generator) for n in PROBES)
    state.values[name] = Traced(state.graph.placeholder("images"), probes)
    for proto in model.graph.node:
        try:
            _walk(state, proto)
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever operands and attributes that do not fit lead to
            raise Step(state, proto, {}).refuse(f"it fails on its inputs: {error}") from error
    out = state.values[model.graph.output[0].name]
    if not isinstance(out, Traced):
        raise UnsupportedModelError("model.onnx: expected logits, but its output is a constant")
    state.graph.output(out.node)
    return fx.GraphModule(state.root, state.graph).eval()


def _stored(tensor: Any) -> Array:
    """The values of an `onnx.TensorProto`."""
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # it trusts shape, kind and length of what is stored
        raise UnsupportedModelError(
            f"model.onnx: weight {tensor.name!r} cannot be read: {error}"
        ) from error


def _walk(state: State, proto: Any) -> None:
    from onnx import helper

    attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in proto.attribute}
    step = Step(state, proto, attributes)
    if proto.domain not in ("", "ai.onnx"):
        raise step.refuse(f"its domain is {proto.domain!r}, not that of ONNX itself")
    given = [state.values.get(name) for name in proto.input if name]
    if proto.op_type in ("Shape", "Size") and isinstance(given[0], Traced):
        given = [Known(tuple(np.empty(tuple(v.shape), np.float32) for v in given[0].values))]
    known = [value.arrays for value in given if isinstance(value, Known)]
    if len(known) == len(given):
        arrays = [_reference(step, [a[k] for a in known]) for k in range(len(PROBES))]
        state.values[proto.output[0]] = Known(tuple(arrays))
        return
    handler = HANDLERS.get(proto.op_type)
    if handler is None:
        more = ""
        if proto.op_type in ("Softmax", "LogSoftmax", "ArgMax"):
            more = "; export the network without it, so that its outputs are logits"
        raise step.refuse(f"it is none of {', '.join(HANDLERS)}{more}")
    found = handler(step)
    several = found if isinstance(found, tuple) else (found,)
    state.values.update(zip(proto.output, several, strict=False))  # a pool may tell its indices too


def _reference(step: Step, inputs: list[Array]) -> Array:
    """What ONNX's own implementation of one operation gives."""
    from onnx.reference import ReferenceEvaluator

    names = [name for name in step.proto.input if name]
    if any(a.g.node or a.graphs for a in step.proto.attribute):
        raise step.refuse("its constant is that of a graph of its own, which may never end")
    if _size(step.proto.op_type, inputs) > MOST:
        raise step.refuse(f"its constant would have more than {MOST:,} values")
    run = ReferenceEvaluator(step.proto, opsets={"": step.state.opset})
    out: Any = run.run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(out[0])


def _size(kind: str, inputs: list[Array]) -> float:
    """How many values an operation makes that may make many out of few; 0 for the others."""
    if kind in ("ConstantOfShape", "Expand", "Tile"):
        times = float(np.prod(inputs[-1].astype(np.float64)))
        return times * inputs[0].size if kind == "Tile" else times
    if kind == "Range":
        start, limit, step = (float(v) for v in inputs)
        return abs(limit - start) / abs(step)
    if kind == "Pad":
        return float(np.prod([n + float(np.abs(inputs[1]).sum()) for n in inputs[0].shape]))
    return 0.0


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
