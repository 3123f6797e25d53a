"""Calls that take channels apart, compare them and put them together: MaxMin as users write it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from greg_cert.models.maxmin import MaxMin
from greg_cert.verify.graph.build import GraphBuilder
from greg_cert.verify.graph.calls import Call

_ADVICE = "; for sorted pairs of channels use greg_cert.models.MaxMin"


def _max_min(c: Call) -> int:
    i = c.operand()
    half = c.builder.shape(i)[0] // 2
    first, second = range(half), range(half, 2 * half)
    return c.builder.max_min(c.name, i, first, second, first, second)


def divided(c: Call) -> tuple[int, ...]:
    """The nodes of a call that gives several: channels taken apart, or a stack of tensors."""
    if c.target is torch.stack:
        parts = c.node.args[0]
        if not isinstance(parts, (list, tuple)) or not all(p in c.context.index for p in parts):
            raise c.refuse("it stacks something else than computed tensors")
        return tuple(c.context.index[p] for p in parts if isinstance(p, fx.Node))
    if c.target not in _DIVISIONS:
        raise c.refuse("its result is not a tensor" + _ADVICE)
    return tuple(_picked(c, part) for part in _of_places(c))


def unstacked(c: Call, stack: fx.Node) -> int:
    """The node of a stack of tensors (B, n, ...) that is flattened to (B, C, ...)."""
    parts = c.context.parts[stack]
    rank = c.context.values[stack].ndim
    dim = stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)
    shape = c.builder.shape(parts[0])
    whole = (c.context.batch, len(parts) * shape[0], *shape[1:])
    if stack.target is torch.stack and isinstance(dim, int) and tuple(c.value.shape) == whole:
        if dim % rank == 1:
            return c.builder.concat(c.name, parts)
        paired = c.builder.pair_up(c.name, parts, interleaved=True)
        if dim % rank == 2 and paired is not None:
            return paired
    raise c.refuse("it flattens a stack of something else than maximum and minimum" + _ADVICE)


def _item(c: Call) -> int:
    source = c.node.args[0]
    if isinstance(source, fx.Node) and source in c.context.parts:
        if isinstance(c.context.values[source], Tensor):
            raise c.refuse("it takes a stack apart" + _ADVICE)
        part: int = c.context.parts[source][c.args[1]]
        return part
    return _picked(c, _of_places(c))


def _of_places(c: Call) -> Any:
    """What the call gives of the tensor that holds, at each place, the place's own number."""
    whole = _places(c)
    if isinstance(c.target, str):
        return getattr(whole, c.target)(*c.args[1:], **c.kwargs)
    return c.target(whole, *c.args[1:], **c.kwargs)


def _places(c: Call) -> Tensor:
    shape = (c.context.batch, *c.builder.shape(c.operand()))
    return torch.arange(int(torch.Size(shape).numel())).reshape(shape)


def _picked(c: Call, places: Tensor) -> int:
    """The node of whole channels, which are told by their places."""
    i, whole = c.operand(), _places(c)
    if places.ndim == whole.ndim and places.numel():
        channels = places[0].reshape(places.shape[1], -1)[:, 0] // whole[0, 0].numel()
        if channels.max() < whole.shape[1] and torch.equal(places, whole[:, channels]):
            return c.builder.channels(c.name, i, channels.tolist())
    raise c.refuse("it takes something else than whole channels" + _ADVICE)


def _pairwise(append: Callable[[GraphBuilder, str, int, int], int]) -> Callable[[Call], int]:
    """Handler of a maximum or minimum of two tensors."""

    def handle(c: Call) -> int:
        named = "other" in c.kwargs
        others = (*c.args[1:], *c.kwargs.values())
        if len(others) != 1 or len(c.kwargs) > named or not isinstance(others[0], Tensor):
            raise c.refuse("expected two tensors of one shape" + _ADVICE)
        left, right = c.operand(0), c.operand(1, "other")
        if c.builder.shape(left) != c.builder.shape(right):
            raise c.refuse("its operands are broadcast")
        return append(c.builder, c.name, left, right)

    return handle


_DIVISIONS: tuple[Any, ...] = (
    torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split",
)  # fmt: skip

CHANNEL_HANDLERS: dict[Any, Callable[[Call], int]] = {
    MaxMin: _max_min,
    operator.getitem: _item,
    **dict.fromkeys((torch.narrow, "narrow"), lambda c: _picked(c, _of_places(c))),
    **dict.fromkeys((torch.max, torch.maximum, "max", "maximum"), _pairwise(GraphBuilder.maximum)),
    **dict.fromkeys((torch.min, torch.minimum, "min", "minimum"), _pairwise(GraphBuilder.minimum)),
}
