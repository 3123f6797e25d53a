"""Building the canonical graph, an operation at a time: maxima by ReLU, pools by convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from greg_cert.verify.graph.fold import Appended, PerChannel, canonical
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Op,
    Smooth,
)
from greg_cert.verify.graph.pairs import Rotation


class GraphBuilder:
    """Collects operations in topological order; `finish` gives the canonical graph.

    Weights stay connected to the parameters that they were computed from, where those require grad.
    """

    def __init__(self, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        self._dtype = dtype
        self._appended = [Appended("input", Input(), (), input_shape)]
        self._picked: dict[int, tuple[int, tuple[int, ...]]] = {}  # of which node which channels
        self._compared: dict[int, tuple[bool, int, int]] = {}  # maximum (or minimum) of which two

    def shape(self, i: int) -> tuple[int, ...]:
        """Output shape of node i, without the batch axis."""
        return self._appended[i].shape

    def _append(
        self, name: str, op: Op | PerChannel | Rotation, inputs: Sequence[int], shape: Sequence[int]
    ) -> int:
        self._appended.append(Appended(name, op, tuple(inputs), tuple(shape)))
        return len(self._appended) - 1

    def layer(self, name: str, i: int, op: Conv | Linear) -> int:
        """Append an affine layer."""
        op = replace(op, weight=op.weight.to(self._dtype), bias=op.bias.to(self._dtype))
        return self._append(name, op, (i,), op.output_shape)

    def _depthwise(
        self,
        name: str,
        i: int,
        tap: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int] = (0, 0),
    ) -> int:
        """Append the same kernel (kh, kw) for each channel."""
        shape = self.shape(i)
        weight = tap.expand(shape[0], 1, *tap.shape).clone()
        bias = weight.new_zeros(shape[0])
        op = Conv(weight, bias, shape, stride, padding, groups=shape[0])
        return self.layer(name, i, op)

    def per_channel(self, name: str, i: int, scale: Tensor, shift: Tensor) -> int:
        """Append scale·x + shift with one pair (scale, shift) a channel (or a feature)."""
        step = PerChannel(scale.to(self._dtype), shift.to(self._dtype))
        return self._append(name, step, (i,), self.shape(i))

    def activation(self, name: str, i: int, negative_slope: float | Tensor) -> int:
        """Append z above zero and c·z below, c finite: one for all channels, or (C,).

        Steeper lines are turned to the other side: the function is c·z above zero of slope 1/c.
        """
        if not isinstance(negative_slope, Tensor):
            if negative_slope == 1.0:
                return i
            if abs(negative_slope) <= 1.0:
                return self._append(name, Activation(negative_slope), (i,), self.shape(i))
            negative_slope = torch.full((self.shape(i)[0],), negative_slope, dtype=self._dtype)
        slope = negative_slope.to(self._dtype)
        if bool((slope == slope[0]).all()) and abs(slope[0].item()) <= 1.0:
            return self.activation(name, i, slope[0].item())
        steep = slope.abs() > 1.0
        if bool(steep.any()):  # for c > 1 it is −σ(−c·z), with σ of slope 1/c; for c < −1 σ(c·z)
            scale = torch.where(steep, -slope.abs(), 1.0)
            i = self.per_channel(name, i, scale, torch.zeros_like(scale))
            i = self.activation(name, i, torch.where(steep, 1.0 / slope, slope))
            sign = torch.where(slope > 1.0, -1.0, 1.0).to(slope)
            return (
                self.per_channel(name, i, sign, torch.zeros_like(sign)) if (sign < 0).any() else i
            )
        shape = self.shape(i)
        slope = slope.detach().to(self._device())
        op = Activation(slope.reshape(-1, *[1] * (len(shape) - 1)))
        return self._append(name, op, (i,), shape)

    def smooth(self, name: str, i: int, kind: str, scale: float = 1.0) -> int:
        """Append σ(scale·z)/scale for a smooth activation σ."""
        if scale != 1.0:
            i = self.scaled(name, i, scale)
        i = self._append(name, Smooth(kind), (i,), self.shape(i))
        return i if scale == 1.0 else self.scaled(name, i, 1.0 / scale)

    def clamp(self, name: str, i: int, low: float, high: float) -> int:
        """Append min(max(z, low), high) as high − ReLU((high − low) − ReLU(z − low)).

        Not the difference of two ReLUs of z: one path has the sharper interval and slope bounds,
        and it does not cancel for large z. A limit may be infinite.
        """
        base = 0.0  # what is to be added to node i
        if not math.isinf(low):
            i, base = self.activation(name, self.scaled(name, i, 1.0, -low), 0.0), low
        if math.isinf(high):
            return self.scaled(name, i, 1.0, base)
        below = self.activation(name, self.scaled(name, i, -1.0, high - base), 0.0)
        return self.scaled(name, below, -1.0, high)

    def scaled(self, name: str, i: int, scale: float, shift: float = 0.0) -> int:
        """Append scale·x + shift."""
        if (scale, shift) == (1.0, 0.0):
            return i
        one = torch.ones(self.shape(i)[0], dtype=self._dtype, device=self._device())
        return self.per_channel(name, i, scale * one, shift * one)

    def add(self, name: str, left: int, right: int) -> int:
        """Append the sum of two tensors of one shape; x + conv(x) as one convolution by I + W."""
        for x, branch in ((left, right), (right, left)):
            op = self._appended[branch].op
            if isinstance(op, Affine) and self._appended[branch].inputs == (x,):
                whole = plus_identity(op)
                if whole is not None:
                    return self._append(self._appended[branch].name, whole, (x,), self.shape(x))
        return self._append(name, Add(), (left, right), self.shape(left))

    def channels(self, name: str, i: int, chosen: Sequence[int]) -> int:
        """Append some channels (or features) of a node, in this order."""
        shape, chosen = self.shape(i), tuple(chosen)
        if chosen == tuple(range(shape[0])):
            return i
        if i in self._picked:
            i, before = self._picked[i]
            chosen = tuple(before[c] for c in chosen)
        eye = torch.eye(self.shape(i)[0], dtype=self._dtype, device=self._device())
        weight, bias = eye[list(chosen)], eye.new_zeros(len(chosen))
        if len(shape) == 3:
            op: Conv | Linear = Conv(weight[:, :, None, None], bias, self.shape(i))
        else:
            op = Linear(weight, bias)
        made = self.layer(name, i, op)
        self._picked[made] = (i, chosen)
        return made

    def maximum(self, name: str, a: int, b: int) -> int:
        """Append the elementwise maximum of two nodes: b + ReLU(a − b).

        Where this and the minimum of the same two are concatenated they become MaxMin (`concat`).
        """
        made = self.add(name, self._excess(name, a, b), b)
        self._compared[made] = (True, a, b)
        return made

    def minimum(self, name: str, a: int, b: int) -> int:
        """Append the elementwise minimum of two nodes: a − ReLU(a − b)."""
        made = self.add(name, self.scaled(name, self._excess(name, a, b), -1.0), a)
        self._compared[made] = (False, a, b)
        return made

    def _excess(self, name: str, a: int, b: int) -> int:
        """Append ReLU(a − b)."""
        return self.activation(name, self.add(name, a, self.scaled(name, b, -1.0)), 0.0)

    def max_min(self, name: str, i: int, first: Sequence[int], second: Sequence[int],
                larger: Sequence[int], smaller: Sequence[int]) -> int:  # fmt: skip
        """Append MaxMin of pairs of channels, the `first` C/2 of node i with the others.

        The larger of each pair goes to C/2 channels of the output, the smaller to the others.
        """
        shape, pairs = self.shape(i), (tuple(first), tuple(second))
        slope = torch.ones(shape[0], dtype=self._dtype, device="cpu")
        slope[list(second)] = -1.0
        apart = self._append(name, Rotation(*pairs, *pairs), (i,), shape)
        bent = self.activation(name, apart, slope)
        back = Rotation(*pairs, tuple(larger), tuple(smaller))
        return self._append(name, back, (bent,), shape)

    def pair_up(self, name: str, parts: Sequence[int], *, interleaved: bool) -> int | None:
        """Append maximum and minimum of the same two nodes, one behind or beside the other.

        None where the parts are something else.
        """
        found = [self._compared.get(p) for p in parts]
        if len(found) != 2 or found[0] is None or found[1] is None:
            return None
        (one, a, b), (other, *rest) = found[0], found[1]
        if one == other or {a, b} != set(rest):
            return None
        count = self.shape(a)[0]
        source, first, second = self._source_of(name, a, b)
        places = [range(k, 2 * count, 2) if interleaved else range(k * count, (k + 1) * count)
                  for k in (0, 1)]  # fmt: skip
        larger, smaller = places if one else places[::-1]
        return self.max_min(name, source, first, second, larger, smaller)

    def _source_of(self, name: str, a: int, b: int) -> tuple[int, Sequence[int], Sequence[int]]:
        """A node that two nodes are all the channels of, and which; made where there is none."""
        count = self.shape(a)[0]
        if a in self._picked and b in self._picked:
            (source, first), (also, second) = self._picked[a], self._picked[b]
            every = sorted((*first, *second)) == list(range(self.shape(source)[0]))
            if source == also and every:
                return source, first, second
        return self._concat(name, (a, b)), range(count), range(count, 2 * count)

    def concat(self, name: str, parts: Sequence[int]) -> int:
        """Append the concatenation along the first axis behind the batch.

        Of the maximum and the minimum of the same two nodes it is MaxMin.
        """
        paired = self.pair_up(name, parts, interleaved=False)
        return self._concat(name, parts) if paired is None else paired

    def _concat(self, name: str, parts: Sequence[int]) -> int:
        first = self.shape(parts[0])
        return self._append(
            name, Concat(), parts, (sum(self.shape(p)[0] for p in parts), *first[1:])
        )

    def flatten(self, name: str, i: int) -> int:
        """Append a flattening, unless the tensor is flat already."""
        if len(self.shape(i)) == 1:
            return i
        return self._append(name, Flatten(), (i,), (int(torch.Size(self.shape(i)).numel()),))

    def average_pool(
        self,
        name: str,
        i: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] = (0, 0),
        divisor: int | None = None,
    ) -> int:
        """Append an average pool (padding counted) as a depthwise convolution."""
        value = 1.0 / (divisor or kernel[0] * kernel[1])
        tap = torch.full(kernel, value, dtype=self._dtype, device=self._device())
        return self._depthwise(name, i, tap, stride, padding)

    def pool_windows(self, name: str, i: int, op: MaxPool) -> int:
        """Append a max pool of any windows, as one operation."""
        return self._append(name, op, (i,), op.output_shape)

    def max_pool(self, name: str, i: int, kernel: tuple[int, int], stride: tuple[int, int]) -> int:
        """Append a max pool without padding, as a tree of max(a, b) = b + ReLU(a − b)."""
        taps = torch.eye(kernel[0] * kernel[1], dtype=self._dtype, device=self._device())
        taps = taps.reshape(-1, *kernel)

        def select(tap: Tensor) -> int:
            return self._depthwise(name, i, tap, stride)

        # The first round takes differences of pixels directly; it needs no negated copies.
        level = []
        for a, b in zip(taps[0::2], taps[1::2], strict=False):
            level.append(self.add(name, self.activation(name, select(a - b), 0.0), select(b)))
        if len(taps) % 2:
            level.append(select(taps[-1]))
        while len(level) > 1:
            pairs = list(zip(level[0::2], level[1::2], strict=False))
            merged = [self.maximum(name, a, b) for a, b in pairs]
            level = merged + ([level[-1]] if len(level) % 2 else [])
        return level[0]

    def _device(self) -> torch.device:
        for given in self._appended:
            if isinstance(given.op, Affine):
                return given.op.weight.device
            if isinstance(given.op, PerChannel):
                return given.op.scale.device
        return torch.device("cpu")

    def finish(self, output: int) -> Graph:
        """The canonical graph that ends at node `output`; what does not reach it is dropped."""
        return canonical(self._appended, output, self._dtype, self._device())


def plus_identity(op: Conv | Linear) -> Conv | Linear | None:
    """The layer x + op(x) for outputs of the shape of x; None if its kernel misses the pixel."""
    weight = op.weight.clone()
    if isinstance(op, Linear):
        weight.diagonal().add_(1.0)
        return replace(op, weight=weight)
    centre = [p // d for p, d in zip(op.padding, op.dilation, strict=True)]
    misses = [p % d for p, d in zip(op.padding, op.dilation, strict=True)]
    inside = all(c < k for c, k in zip(centre, weight.shape[2:], strict=True))
    if op.stride != (1, 1) or any(misses) or not inside:
        return None
    each = torch.arange(len(weight), device=weight.device)  # output o reads x[o], its own group's
    weight[each, each % weight.shape[1], centre[0], centre[1]] += 1.0
    return replace(op, weight=weight)
