"""Single affine layers of every kind, small enough to be written out as matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.graph.ops import Conv, Linear


def weight(*shape: int) -> Tensor:
    """Normal numbers, the same for a shape each time."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def conv(shape: tuple[int, ...], image: tuple[int, ...], **settings: Any) -> Conv:
    return Conv(weight(*shape), torch.zeros(shape[0]).double(), image, **settings)


def linear(*shape: int) -> Linear:
    return Linear(weight(*shape), torch.zeros(shape[0]).double())


LAYERS: dict[str, Conv | Linear] = {
    "plain": conv((4, 3, 3, 3), (3, 7, 6), padding=(1, 1)),
    "valid": conv((4, 3, 3, 3), (3, 7, 6)),
    "padded more": conv((3, 2, 3, 3), (2, 5, 5), padding=(3, 2)),
    "stride": conv((4, 3, 3, 3), (3, 8, 7), stride=(2, 2), padding=(1, 1)),
    "stride, kernel of 4": conv((4, 3, 4, 4), (3, 8, 8), stride=(2, 2), padding=(1, 1)),
    "uneven": conv((4, 2, 3, 2), (2, 7, 9), stride=(2, 3), padding=(1, 0)),
    "rectangular": conv((3, 2, 1, 5), (2, 6, 8), padding=(0, 2)),
    "dilated": conv((3, 2, 3, 3), (2, 8, 8), padding=(2, 2), dilation=(2, 2)),
    "dilated, stride": conv((3, 2, 3, 2), (2, 9, 9), stride=(2, 2), dilation=(3, 2)),
    "dilated by the stride": conv((3, 2, 2, 2), (2, 8, 8), stride=(2, 2), dilation=(2, 2)),
    "groups": conv((6, 2, 3, 3), (4, 6, 6), groups=2, padding=(1, 1)),
    "groups, stride": conv((4, 2, 3, 3), (8, 7, 7), groups=4, padding=(1, 1), stride=(2, 2)),
    "depthwise": conv((4, 1, 3, 3), (4, 6, 6), groups=4, padding=(1, 1)),
    "depthwise, twice": conv((6, 1, 3, 2), (3, 6, 5), groups=3, stride=(1, 2)),
    "1x1": conv((5, 3, 1, 1), (3, 4, 4)),
    "1x1, stride and padding": conv((5, 3, 1, 1), (3, 5, 5), stride=(2, 2), padding=(1, 1)),
    "per channel": conv((4, 1, 1, 1), (4, 5, 5), groups=4),
    "apart": conv((5, 2, 2, 3), (2, 6, 7), stride=(2, 3)),
    "apart, no window whole": conv((2, 2, 4, 4), (2, 3, 3), stride=(4, 4), padding=(1, 1)),
    "stride above kernel": conv((3, 2, 2, 2), (2, 9, 9), stride=(4, 3), padding=(1, 1)),
    "kernel above image": conv((3, 2, 5, 5), (2, 3, 3), padding=(2, 2)),
    "one pixel": conv((3, 2, 3, 3), (2, 1, 1), padding=(1, 1)),
    "a column": conv((3, 2, 3, 1), (2, 5, 1), padding=(1, 0)),
    "a row": conv((3, 2, 1, 3), (2, 1, 6), padding=(0, 1)),
    "wide border": conv((6, 4, 1, 1), (4, 5, 5), padding=(2, 2)),
    "large kernel": conv((8, 1, 5, 5), (1, 12, 12), stride=(3, 3), padding=(2, 2)),
    "depthwise, apart": conv((3, 1, 2, 3), (3, 5, 6), groups=3, stride=(3, 3), padding=(1, 1)),
    "depthwise, apart, twice": conv((6, 1, 2, 2), (3, 4, 4), groups=3, stride=(2, 2)),
    "linear, wide": linear(4, 30),
    "linear, tall": linear(30, 4),
    "linear, one": linear(1, 1),
}
CONVOLUTIONS = sorted(name for name, op in LAYERS.items() if isinstance(op, Conv))


def dense(op: Conv | Linear) -> Tensor:
    """The matrix (outputs, inputs), by torch's convolution of unit images."""
    if isinstance(op, Linear):
        return op.weight
    units = torch.eye(math.prod(op.input_shape), dtype=torch.float64).unflatten(1, op.input_shape)
    settings = (op.stride, op.padding, op.dilation, op.groups)
    return F.conv2d(units, op.weight, None, *settings).flatten(1).T
