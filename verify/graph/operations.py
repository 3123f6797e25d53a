"""Each torch operation that the canonical graph can express, as a translation into it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from greg_cert.models.maxmin import MaxMin
from greg_cert.verify.graph.activation_calls import ACTIVATION_HANDLERS, ACTIVATION_LEAVES
from greg_cert.verify.graph.calls import Call, Scale
from greg_cert.verify.graph.channel_calls import CHANNEL_HANDLERS, unstacked
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Conv, Linear

LEAVES: tuple[type[nn.Module], ...] = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    *ACTIVATION_LEAVES,
    MaxMin,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
)


def translate(c: Call) -> int:
    """Append a call to the graph and give its node, or raise the refusal."""
    key = c.target
    if isinstance(key, nn.Module):
        key = next((leaf for leaf in LEAVES if isinstance(key, leaf)), type(key))
    handler = _HANDLERS.get(key)
    if handler is None:
        raise c.refuse("the operation is not in the list")
    return handler(c)


def _convolution(c: Call) -> int:
    m = c.target
    if isinstance(m, nn.Conv2d):
        weight, bias, mode = m.weight, m.bias, m.padding_mode
    else:
        weight, bias, mode = c.argument(1, "weight", None), c.argument(2, "bias", None), "zeros"
    offset = 0 if isinstance(m, nn.Module) else 3
    stride = c.attribute(offset, "stride", 1)
    padding = c.attribute(offset + 1, "padding", 0)
    dilation = c.attribute(offset + 2, "dilation", 1)
    groups = c.attribute(offset + 3, "groups", 1)
    if mode != "zeros":
        raise c.refuse(f"its padding mode is {mode!r}, not 'zeros'")
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if padding == "same" and any(s % 2 for s in spans):
            raise c.refuse("its padding 'same' is not symmetric")
        padding = (spans[0] // 2, spans[1] // 2) if padding == "same" else 0
    i = c.operand()
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    op = Conv(weight, _or_zeros(bias, weight), c.builder.shape(i), *geometry)
    return c.builder.layer(c.name, i, op)


def _linear(c: Call) -> int:
    weight, bias = c.attribute(1, "weight"), c.attribute(2, "bias")
    i = c.operand()
    if len(c.builder.shape(i)) != 1:
        raise c.refuse(f"its input has shape {c.builder.shape(i)}, not (D,): flatten it first")
    return c.builder.layer(c.name, i, Linear(weight, _or_zeros(bias, weight)))


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias


def batch_norm_scales(modules: Sequence[Any], variances: Sequence[Tensor]) -> list[Scale]:
    """What BatchNorm in evaluation mode does, with these variances; all of them in one go."""

    def joined(name: str, missing: float) -> Tensor:
        values = [getattr(m, name) for m in modules]
        pairs = zip(values, variances, strict=True)
        return torch.cat([torch.full_like(v, missing) if x is None else x for x, v in pairs])

    padded = torch.cat([v + m.eps for m, v in zip(modules, variances, strict=True)])
    scale = torch.rsqrt(padded) * joined("weight", 1.0)
    shift = joined("bias", 0.0) - joined("running_mean", 0.0) * scale
    sizes = [len(v) for v in variances]
    return list(zip(scale.split(sizes), shift.split(sizes), strict=True))


def _batch_norm(c: Call) -> int:
    m = c.target
    if m.running_mean is None or m.running_var is None:
        raise c.refuse("it has no running statistics, so its output depends on the batch")
    known = c.context.scales.get(m)
    scale, shift = known or batch_norm_scales([m], [m.running_var])[0]
    return c.builder.per_channel(c.name, c.operand(), scale, shift)


def _dropout(c: Call) -> int:
    if not isinstance(c.target, nn.Module) and c.argument(2, "training", True):
        raise c.refuse("it is called with training=True, so its output is random")
    return c.operand()


def _reshape(c: Call) -> int:
    source = c.node.args[0] if c.node.args else None
    if isinstance(source, fx.Node) and source in c.context.parts:
        return unstacked(c, source)
    value, i = c.value, c.operand()
    if len(value) != c.context.batch:
        raise c.refuse("it mixes the samples of a batch")
    if tuple(value.shape[1:]) == c.builder.shape(i):
        return i
    if value.ndim != 2:
        raise c.refuse(
            f"it gives shape {tuple(value.shape[1:])}; only flattening to (D,) is supported"
        )
    return c.builder.flatten(c.name, i)


def _average_pool(c: Call) -> int:
    kernel = _pair(c.attribute(1, "kernel_size"))
    stride = _pair(c.attribute(2, "stride") or kernel)
    padding = _pair(c.attribute(3, "padding", 0))
    if c.attribute(4, "ceil_mode", False):
        raise c.refuse("ceil_mode is on, so its windows differ in size")
    if any(padding) and not c.attribute(5, "count_include_pad", True):
        raise c.refuse("count_include_pad is off with padding, so its windows differ in weight")
    if (divisor := c.attribute(6, "divisor_override")) is not None and divisor <= 0:
        raise c.refuse(f"divisor_override is {divisor}")
    return c.builder.average_pool(c.name, c.operand(), kernel, stride, padding, divisor)


def _adaptive_average_pool(c: Call) -> int:
    i = c.operand()
    size = c.builder.shape(i)[1:]
    out = tuple(c.value.shape[2:])
    if any(n % o for n, o in zip(size, out, strict=True)):
        raise c.refuse(f"it pools {size} to {out}, whose windows overlap")
    kernel = (size[0] // out[0], size[1] // out[1])
    return c.builder.average_pool(c.name, i, kernel, kernel)


def _mean(c: Call) -> int:
    i, value = c.operand(), c.value
    dims = c.argument(1, "dim", None)
    dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
    rank = len(c.builder.shape(i)) + 1
    if rank != 4 or sorted(d % rank for d in dims) != [2, 3]:
        raise c.refuse(f"it averages over axes {dims}; only the two image axes are supported")
    _, *size = c.builder.shape(i)
    pooled = c.builder.average_pool(c.name, i, _pair(size), _pair(size))
    return pooled if value.ndim == 4 else c.builder.flatten(c.name, pooled)


def _max_pool(c: Call) -> int:
    i, kernel = c.operand(), _pair(c.attribute(1, "kernel_size"))
    stride = _pair(c.attribute(2, "stride") or kernel)
    padding = _pair(c.attribute(3, "padding", 0))
    dilation = _pair(c.attribute(4, "dilation", 1))
    ceil_mode = bool(c.attribute(5, "ceil_mode", False))
    op = MaxPool(c.builder.shape(i), kernel, stride, padding, dilation, ceil_mode)
    apart = stride == kernel and dilation == (1, 1) and bool(op.real.all())
    if (apart and not c.context.whole_pools) or op.size == 1:
        return c.builder.max_pool(c.name, i, kernel, stride)
    return c.builder.pool_windows(c.name, i, op)


def _concatenate(c: Call) -> int:
    parts = c.node.args[0] if c.node.args else c.node.kwargs.get("tensors")
    dim = c.argument(1, "dim", 0)
    if not isinstance(parts, (list, tuple)) or not all(p in c.context.index for p in parts):
        raise c.refuse("it concatenates constants")
    indices = [c.context.index[p] for p in parts if isinstance(p, fx.Node)]
    if dim % c.value.ndim != 1:
        raise c.refuse(f"it concatenates along axis {dim}, not along channels")
    return c.builder.concat(c.name, indices)


def _arithmetic(sign: str) -> Callable[[Call], int]:
    """Handler of a binary operation: +, -, * or /."""

    def handle(c: Call) -> int:
        if c.kwargs:  # alpha, rounding_mode, out
            raise c.refuse(f"its options {sorted(c.kwargs)} are not supported")
        symbolic = [isinstance(a, fx.Node) and a in c.context.index for a in c.node.args]
        if all(symbolic):
            if sign in "*/":
                raise c.refuse("it multiplies or divides two computed tensors")
            left, right = c.operand(0), c.operand(1)
            if c.builder.shape(left) != c.builder.shape(right):
                raise c.refuse("its operands are broadcast")
            if sign == "-":
                right = c.builder.scaled(c.name, right, -1.0)
            return c.builder.add(c.name, left, right)
        position = symbolic.index(True)
        i, constant = c.operand(position), c.args[1 - position]
        fixed = _per_channel(constant, c.value, c.builder.shape(i)[0])
        if fixed is None:
            raise c.refuse("its constant is not one number a channel")
        one, zero = torch.ones_like(fixed), torch.zeros_like(fixed)
        match sign, position:
            case "+", _:
                scale, shift = one, fixed
            case "-", 0:
                scale, shift = one, -fixed
            case "-", _:
                scale, shift = -one, fixed
            case "*", _:
                scale, shift = fixed, zero
            case "/", 0:
                scale, shift = 1.0 / fixed, zero
            case _:
                raise c.refuse("it divides by a computed tensor")
        return c.builder.per_channel(c.name, i, scale, shift)

    return handle


_HANDLERS: dict[Any, Callable[[Call], int]] = {
    **dict.fromkeys((nn.Conv2d, F.conv2d, torch.conv2d), _convolution),
    **dict.fromkeys((nn.Linear, F.linear), _linear),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm), _batch_norm),
    **ACTIVATION_HANDLERS,
    **CHANNEL_HANDLERS,
    **dict.fromkeys((nn.Identity, nn.Dropout2d, nn.Dropout, "contiguous"), Call.operand),
    F.dropout: _dropout,
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten"), _reshape),
    **dict.fromkeys(("view", "reshape", torch.reshape, "squeeze", torch.squeeze), _reshape),
    **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), _average_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), _adaptive_average_pool),
    **dict.fromkeys(("mean", torch.mean), _mean),
    **dict.fromkeys((nn.MaxPool2d, F.max_pool2d), _max_pool),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenate),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _arithmetic("+")),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), _arithmetic("-")),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _arithmetic("*")),
    **dict.fromkeys(
        (operator.truediv, operator.itruediv, torch.div, "div", "div_"), _arithmetic("/")
    ),
}


def _per_channel(constant: Any, value: Tensor, channels: int) -> Tensor | None:
    """A constant beside a value as (channels,), or None where it varies within a channel."""
    if isinstance(constant, (int, float)):
        return value.new_full((channels,), float(constant))
    rank = value.ndim
    if not isinstance(constant, Tensor) or constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + tuple(constant.shape)
    if shape[0] != 1 or shape[1] not in (1, channels) or math.prod(shape[2:]) != 1:
        return None
    return constant.to(value.dtype).reshape(-1).expand(channels).clone()


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
