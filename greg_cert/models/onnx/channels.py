"""ONNX operations that take channels and compare tensors, of which MaxMin is made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from greg_cert.models.onnx.step import Step, Traced


def _narrowed(s: Step, start: int, count: int) -> Traced:
    whole = (start, count) == (0, s.shape()[0])
    return s.operand() if whole else s.call(torch.narrow, s.operand(), 1, start, count)


def _check_axis(s: Step, axis: int) -> None:
    if axis % (len(s.shape()) + 1) != 1:
        raise s.refuse(f"it divides axis {axis}, not channels")


def slice_channels(s: Step) -> Traced:
    """Channels that follow each other; axes and steps are operands since operator set 10."""
    starts, ends, axes, steps = (
        s.numbers(i, name) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    axes = axes or [*range(len(starts))]
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1 or steps not in ([], [1]):
        raise s.refuse("expected one axis, in steps of 1")
    _check_axis(s, axes[0])
    first, last, _ = slice(starts[0], ends[0]).indices(s.shape()[0])
    if first >= last:
        raise s.refuse("it leaves no channel")
    return _narrowed(s, first, last - first)


def split_channels(s: Step) -> tuple[Traced, ...]:
    """All channels in parts, by default of one size; an operand since operator set 13."""
    _check_axis(s, s.attribute("axis", 0))
    total, count = s.shape()[0], len(s.proto.output)
    each = -(-total // count)
    sizes = s.numbers(1, "split") or [each] * (count - 1) + [total - each * (count - 1)]
    if len(sizes) != count or sum(sizes) != total:
        raise s.refuse(f"it divides {total} channels into {count} parts of {sizes}")
    starts = [sum(sizes[:k]) for k in range(count)]
    return tuple(_narrowed(s, start, size) for start, size in zip(starts, sizes, strict=True))


def folded(
    function: Callable[[Tensor, Tensor], Tensor],
    operand: Callable[[Step, int], Traced | Tensor] = Step.operand,
) -> Callable[[Step], Traced]:
    """An elementwise function of two, over all operands; by default all come from the image."""

    def handle(s: Step) -> Traced:
        found = s.operand()
        for i in range(1, s.count):
            found = s.call(function, found, operand(s, i))
        return found

    return handle
