"""ONNX operations as torch layers; what has none here is refused by name.

Each handler takes one `Step` and gives the value of its output, or of each of several. Layers are
chosen so that `greg_cert.verify` can bound them: padding becomes part of a convolution, averages
over the image become pools, and every change of shape that keeps the samples apart becomes a
flattening.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.models.onnx.channels import folded, slice_channels, split_channels
from greg_cert.models.onnx.step import Step, Traced

Layer = TypeVar("Layer", bound=nn.Module)
Pair = tuple[int, int]  # of rows and of columns
Pads = list[Pair]  # before and behind, of rows and of columns


def _conv(s: Step) -> Traced:
    weight = s.constant(1)
    bias = s.constant(2) if s.given(2) else None
    if weight.ndim != 4:
        raise s.refuse(f"its kernel has {weight.ndim - 2} axes, not 2")
    stride, dilation = s.pair("strides"), s.pair("dilations")
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    weight, padding = _symmetric(s, weight, _pads(s, spans, stride), dilation)
    return s.layer(_conv_layer(weight, bias, stride, padding, dilation, s.attribute("group", 1)))


def _symmetric(s: Step, weight: Tensor, pads: Pads, dilation: Pair = (1, 1)) -> tuple[Tensor, Pair]:
    """Kernel and equal padding on both sides that do what `pads` do: the kernel grows by zeros."""
    extra = [(max(a, b) - a, max(a, b) - b) for a, b in pads]
    if any(sum(e) for e in extra):
        if dilation != (1, 1):
            raise s.refuse(f"it is dilated and pads its sides differently, {pads}")
        weight = F.pad(weight, (*extra[1], *extra[0]))
    return weight, (max(pads[0]), max(pads[1]))


def _conv_layer(
    weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> nn.Conv2d:
    out, inside, *kernel = weight.shape
    layer = nn.Conv2d(
        inside * groups, out, (kernel[0], kernel[1]), stride, padding, dilation, groups,
        bias is not None,
    )  # fmt: skip
    return _filled(layer, weight=weight, bias=bias)


def _filled(layer: Layer, **tensors: Tensor | None) -> Layer:
    """The layer with these values in its parameters and buffers."""
    with torch.no_grad():
        for name, value in tensors.items():
            if value is not None:
                getattr(layer, name).copy_(value)
    return layer


def _pads(s: Step, spans: list[int], stride: Pair) -> Pads:
    """What an operation that slides over the image adds around it."""
    auto = s.attribute("auto_pad", "NOTSET")
    if auto == "NOTSET":
        top, left, bottom, right = s.attribute("pads", [0, 0, 0, 0])
        return [(top, bottom), (left, right)]
    if auto == "VALID":
        return [(0, 0), (0, 0)]
    pads = []
    for size, span, step in zip(s.shape()[1:], spans, stride, strict=True):
        total = max((math.ceil(size / step) - 1) * step + span - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return pads


def _pad(s: Step) -> Traced:
    if s.attribute("mode", "constant") != "constant":
        raise s.refuse(f"its mode is {s.attribute('mode', '')!r}, not 'constant'")
    value = float(s.constant(2)) if s.given(2) else float(s.attribute("value", 0.0))
    pads = s.numbers(1, "pads")
    rank = len(s.shape()) + 1
    axes = [a % rank for a in s.integers(3)] if s.given(3) else list(range(rank))
    around = {a: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    image = [around.pop(a, (0, 0)) for a in (2, 3)]
    if (
        value != 0
        or rank != 4
        or any(p != (0, 0) for p in around.values())
        or min(map(min, image)) < 0
    ):
        raise s.refuse("only zeros around images are supported")
    channels = s.shape()[0]
    weight, padding = _symmetric(s, torch.ones(channels, 1, 1, 1), image)
    return s.layer(_conv_layer(weight, None, (1, 1), padding, (1, 1), channels))


def _gemm(s: Step) -> Traced:
    if s.attribute("transA", 0):
        raise s.refuse("it transposes the batch")
    weight = s.constant(1)
    weight = weight if s.attribute("transB", 0) else weight.T
    alpha, beta = s.attribute("alpha", 1.0), s.attribute("beta", 1.0)
    bias = s.constant(2) * beta if s.given(2) else None
    return _linear_layer(s, weight * alpha, bias)


def _matmul(s: Step) -> Traced:
    return _linear_layer(s, s.constant(1).T, None)


def _linear_layer(s: Step, weight: Tensor, bias: Tensor | None) -> Traced:
    if weight.ndim != 2 or len(s.shape()) != 1:
        raise s.refuse(f"its input has shape {s.shape()}, not (D,), or its weight is no matrix")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return s.layer(_filled(layer, weight=weight, bias=bias))


def _batch_norm(s: Step) -> Traced:
    if s.attribute("training_mode", 0):
        raise s.refuse("it is in training mode: export the network in evaluation mode")
    scale, shift, mean, var = (s.constant(i) for i in range(1, 5))
    kind = nn.BatchNorm2d if len(s.shape()) == 3 else nn.BatchNorm1d
    layer = kind(len(scale), eps=s.attribute("epsilon", 1e-5))
    return s.layer(_filled(layer, weight=scale, bias=shift, running_mean=mean, running_var=var))


def _average_pool(s: Step) -> Traced:
    if s.pair("dilations") != (1, 1):
        raise s.refuse("it is dilated")
    kernel, stride, padding, ceil = _window(s)
    counted = bool(s.attribute("count_include_pad", 0)) or padding == (0, 0)
    return s.layer(nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=counted))


def _max_pool(s: Step) -> Traced:
    kernel, stride, padding, ceil = _window(s)
    return s.layer(nn.MaxPool2d(kernel, stride, padding, s.pair("dilations"), ceil_mode=ceil))


def _window(s: Step) -> tuple[Pair, Pair, Pair, bool]:
    """Kernel, stride and padding of a pool, and whether its size is rounded up."""
    kernel, stride, dilation = s.pair("kernel_shape"), s.pair("strides"), s.pair("dilations")
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    pads = _pads(s, spans, stride)
    if any(a != b for a, b in pads):
        raise s.refuse(f"it pads its sides differently, {pads}")
    return kernel, stride, (pads[0][0], pads[1][0]), bool(s.attribute("ceil_mode", 0))


def _reduce_mean(s: Step) -> Traced:
    axes = s.numbers(1, "axes")
    if len(s.shape()) != 3 or sorted(a % 4 for a in axes) != [2, 3]:
        raise s.refuse(f"it averages over axes {axes}; only the two image axes are supported")
    pooled = s.layer(nn.AdaptiveAvgPool2d(1))
    return pooled if s.attribute("keepdims", 1) else s.layer(nn.Flatten(), pooled)


def _clip(s: Step) -> Traced:
    limits = [
        float(s.constant(i)) if s.given(i) else float(s.attribute(name, fallback))
        for i, name, fallback in ((1, "min", -math.inf), (2, "max", math.inf))
    ]
    return s.layer(nn.Hardtanh(limits[0], limits[1]))


def _prelu(s: Step) -> Traced:
    slopes = s.constant(1).flatten()
    return s.layer(_filled(nn.PReLU(len(slopes)), weight=slopes))


def _dropout(s: Step) -> Traced:
    if s.given(2) and bool(s.constant(2)):
        raise s.refuse("it is in training mode: export the network in evaluation mode")
    return s.operand()


def _cast(s: Step) -> Traced:
    if s.attribute("to", 1) != 1:  # TensorProto.FLOAT
        raise s.refuse("it changes the type of what is computed from the image")
    return s.operand()


def _concat(s: Step) -> Traced:
    if s.attribute("axis", 1) % (len(s.shape()) + 1) != 1:
        raise s.refuse(f"it joins along axis {s.attribute('axis', 1)}, not along channels")
    return s.call(torch.cat, [s.operand(i) for i in range(s.count)], 1)


def _binary(function: Callable[..., Tensor]) -> Callable[[Step], Traced]:
    return lambda s: s.call(function, s.operand_or_constant(0), s.operand_or_constant(1))


def _multiply(s: Step) -> Traced:
    for gate, through in ((0, 1), (1, 0)):
        if s.is_sigmoid_of(gate, through):  # how exporters write SiLU
            return s.layer(nn.SiLU(), s.operand(through))
    return s.call(torch.mul, s.operand_or_constant(0), s.operand_or_constant(1))


def _reshape(s: Step) -> Traced:
    return s.reshaped([_resolved(s, t, x) for t, x in s.pairs(1)])


def _resolved(s: Step, target: list[int], shape: tuple[int, ...]) -> list[int]:
    """The shape that ONNX's Reshape gives: 0 copies an axis, -1 takes what is left."""
    copies = not s.attribute("allowzero", 0)
    out = [shape[i] if t == 0 and copies else t for i, t in enumerate(target)]
    if s.state.fixed_batch and out and out[0] == 1:
        out[0] = shape[0]
    if -1 in out:
        rest = math.prod(o for o in out if o != -1)
        out[out.index(-1)] = math.prod(shape) // max(rest, 1)
    return out


def _flatten(s: Step) -> Traced:
    rank = len(s.shape()) + 1
    axis = s.attribute("axis", 1)
    axis = axis if 0 <= axis <= rank else axis % rank
    if axis != 1 and not (axis == 0 and s.state.fixed_batch):
        raise s.refuse(f"it flattens from axis {axis}, not from 1")
    return s.reshaped([[shape[0], math.prod(shape[1:])] for shape in s.shapes()])


def _squeeze(s: Step) -> Traced:
    axes = s.numbers(1, "axes") or [i for i, n in enumerate(s.shape(), 1) if n == 1]
    rank = len(s.shape()) + 1
    gone = {a % rank for a in axes}
    return s.reshaped([[n for i, n in enumerate(shape) if i not in gone] for shape in s.shapes()])


def _unsqueeze(s: Step) -> Traced:
    axes = s.numbers(1, "axes")
    rank = len(s.shape()) + 1 + len(axes)
    new = sorted(a % rank for a in axes)
    shapes = []
    for shape in s.shapes():
        out = list(shape)
        for a in new:
            out.insert(a, 1)
        shapes.append(out)
    return s.reshaped(shapes)


def _transpose(s: Step) -> Traced:
    rank = len(s.shape()) + 1
    order = list(s.attribute("perm", range(rank - 1, -1, -1)))
    if order != list(range(rank)):
        raise s.refuse(f"it exchanges axes, {order}: export with channels first")
    return s.operand()


def _layer(make: Callable[[Step], nn.Module]) -> Callable[[Step], Traced]:
    return lambda s: s.layer(make(s))


HANDLERS: dict[str, Callable[[Step], Traced | tuple[Traced, ...]]] = {
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _binary(torch.div),
    "Dropout": _dropout,
    "Elu": _layer(lambda s: nn.ELU(s.attribute("alpha", 1.0))),
    "Flatten": _flatten,
    "Gelu": _layer(lambda s: nn.GELU(s.attribute("approximate", "none"))),
    "Gemm": _gemm,
    "GlobalAveragePool": _layer(lambda s: nn.AdaptiveAvgPool2d(1)),
    "GlobalMaxPool": _layer(lambda s: nn.MaxPool2d(s.shape()[1:])),
    "Identity": Step.operand,
    "LeakyRelu": _layer(lambda s: nn.LeakyReLU(s.attribute("alpha", 0.01))),
    "MatMul": _matmul,
    "Max": folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": folded(torch.minimum),
    "Mul": _multiply,
    "Neg": lambda s: s.call(torch.mul, s.operand(), -1.0),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _layer(lambda s: nn.ReLU()),
    "Reshape": _reshape,
    "Sigmoid": _layer(lambda s: nn.Sigmoid()),
    "Slice": slice_channels,
    "Softplus": _layer(lambda s: nn.Softplus()),
    "Split": split_channels,
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": folded(torch.add, Step.operand_or_constant),
    "Tanh": _layer(lambda s: nn.Tanh()),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
