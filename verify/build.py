"""Building the canonical graph: folding per-channel steps, pools as convolutions and ReLU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Node,
    Op,
    Smooth,
)
from greg_cert.verify.max_pool import MaxPool

_LARGEST_DIAGONAL = 8192  # a per-channel step on vectors becomes a dense matrix


@dataclass(frozen=True)
class _Scale:
    """Per-channel scale·x + shift, gone once the graph is finished."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class _Draft:
    name: str
    op: Op | _Scale
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


class GraphBuilder:
    """Collects operations in topological order; `finish` gives the canonical graph."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self._drafts = [_Draft("input", Input(), (), input_shape)]

    def shape(self, i: int) -> tuple[int, ...]:
        """Output shape of node i, without the batch axis."""
        return self._drafts[i].shape

    def _append(
        self, name: str, op: Op | _Scale, inputs: Sequence[int], shape: Sequence[int]
    ) -> int:
        self._drafts.append(_Draft(name, op, tuple(inputs), tuple(shape)))
        return len(self._drafts) - 1

    def conv(
        self,
        name: str,
        i: int,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> int:
        """Append a convolution; a missing bias is zero."""
        weight = weight.detach().double()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        op = Conv(weight, bias, self.shape(i), stride, padding, dilation, groups)
        return self._append(name, op, (i,), op.output_shape)

    def linear(self, name: str, i: int, weight: Tensor, bias: Tensor | None) -> int:
        """Append a linear layer; a missing bias is zero."""
        weight = weight.detach().double()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        return self._append(name, Linear(weight, bias), (i,), (len(weight),))

    def per_channel(self, name: str, i: int, scale: Tensor, shift: Tensor) -> int:
        """Append scale·x + shift with one pair (scale, shift) a channel (or a feature)."""
        return self._append(
            name, _Scale(scale.detach().double(), shift.detach().double()), (i,), self.shape(i)
        )

    def activation(self, name: str, i: int, negative_slope: float) -> int:
        """Append a LeakyReLU; slope 1 is the identity."""
        if negative_slope == 1.0:
            return i
        return self._append(name, Activation(negative_slope), (i,), self.shape(i))

    def smooth(self, name: str, i: int, kind: str, scale: float = 1.0) -> int:
        """Append σ(scale·z)/scale for a smooth activation σ."""
        if scale != 1.0:
            i = self._rescale(name, i, scale, 0.0)
        i = self._append(name, Smooth(kind), (i,), self.shape(i))
        return i if scale == 1.0 else self._rescale(name, i, 1.0 / scale, 0.0)

    def clamp(self, name: str, i: int, low: float, high: float) -> int:
        """Append min(max(z, low), high) as high − ReLU((high − low) − ReLU(z − low)).

        Not the difference of two ReLUs of z: one path has the sharper interval and slope bounds,
        and it does not cancel for large z.
        """
        above = self.activation(name, self._rescale(name, i, 1.0, -low), 0.0)
        below = self.activation(name, self._rescale(name, above, -1.0, high - low), 0.0)
        return self._rescale(name, below, -1.0, high)

    def _rescale(self, name: str, i: int, scale: float, shift: float) -> int:
        if (scale, shift) == (1.0, 0.0):
            return i
        one = torch.ones(self.shape(i)[0], dtype=torch.float64, device=self._device())
        return self.per_channel(name, i, scale * one, shift * one)

    def add(self, name: str, left: int, right: int) -> int:
        """Append the sum of two tensors of one shape."""
        return self._append(name, Add(), (left, right), self.shape(left))

    def concat(self, name: str, parts: Sequence[int]) -> int:
        """Append the concatenation along the first axis behind the batch."""
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
        padding: tuple[int, int],
        divisor: int | None,
    ) -> int:
        """Append an average pool (padding counted) as a depthwise convolution."""
        value = 1.0 / (divisor or kernel[0] * kernel[1])
        weight = torch.full(
            (self.shape(i)[0], 1, *kernel), value, dtype=torch.float64, device=self._device()
        )
        return self.conv(name, i, weight, None, stride, padding, groups=len(weight))

    def pool_windows(self, name: str, i: int, op: MaxPool) -> int:
        """Append a max pool of any windows, as one operation."""
        return self._append(name, op, (i,), op.output_shape)

    def max_pool(self, name: str, i: int, kernel: tuple[int, int], stride: tuple[int, int]) -> int:
        """Append a max pool without padding, as a tree of max(a, b) = b + ReLU(a − b)."""
        channels = self.shape(i)[0]
        taps = torch.eye(kernel[0] * kernel[1], dtype=torch.float64, device=self._device())
        taps = taps.reshape(-1, 1, *kernel)

        def select(tap: Tensor) -> int:
            weight = tap.expand(channels, 1, *kernel).clone()
            return self.conv(name, i, weight, None, stride, (0, 0), groups=channels)

        # The first round takes differences of pixels directly; it needs no negated copies.
        level = []
        for a, b in zip(taps[0::2], taps[1::2], strict=False):
            level.append(self.add(name, self.activation(name, select(a - b), 0.0), select(b)))
        if len(taps) % 2:
            level.append(select(taps[-1]))
        while len(level) > 1:
            pairs = list(zip(level[0::2], level[1::2], strict=False))
            merged = [self._maximum(name, a, b) for a, b in pairs]
            level = merged + ([level[-1]] if len(level) % 2 else [])
        return level[0]

    def _maximum(self, name: str, a: int, b: int) -> int:
        minus = torch.full((self.shape(b)[0],), -1.0, dtype=torch.float64, device=self._device())
        difference = self.add(name, a, self.per_channel(name, b, minus, torch.zeros_like(minus)))
        return self.add(name, self.activation(name, difference, 0.0), b)

    def _device(self) -> torch.device:
        for draft in self._drafts:
            if isinstance(draft.op, (Conv, Linear)):
                return draft.op.weight.device
            if isinstance(draft.op, _Scale):
                return draft.op.scale.device
        return torch.device("cpu")

    def finish(self, output: int) -> Graph:
        """The canonical graph that ends at node `output`; what does not reach it is dropped."""
        used = self._ancestors(output)
        readers = Counter(j for i in used for j in self._drafts[i].inputs)
        nodes: list[Node] = []
        index: dict[int, int] = {}
        for i in sorted(used):
            draft = self._drafts[i]
            inputs = tuple(index[j] for j in draft.inputs)
            if isinstance(draft.op, _Scale):
                source = nodes[inputs[0]]
                alone = readers[draft.inputs[0]] == 1
                if alone and isinstance(source.op, (Conv, Linear)):
                    nodes[inputs[0]] = replace(source, op=_fold(source.op, draft.op))
                    index[i] = inputs[0]
                    continue
                nodes.append(
                    Node(draft.name, _as_affine(draft, self._device()), inputs, draft.shape)
                )
            else:
                nodes.append(Node(draft.name, draft.op, inputs, draft.shape))
            index[i] = len(nodes) - 1
        return Graph(tuple(nodes))

    def _ancestors(self, output: int) -> set[int]:
        found, stack = {0}, [output]
        while stack:
            i = stack.pop()
            if i not in found:
                found.add(i)
                stack.extend(self._drafts[i].inputs)
        return found


def _fold(op: Conv | Linear, step: _Scale) -> Conv | Linear:
    """The layer followed by the per-channel step, as one layer."""
    scale, shift = step.scale.to(op.weight.device), step.shift.to(op.weight.device)
    weight = op.weight * scale.reshape(-1, *[1] * (op.weight.ndim - 1))
    return replace(op, weight=weight, bias=op.bias * scale + shift)


def _as_affine(draft: _Draft, device: torch.device) -> Conv | Linear:
    step = cast(_Scale, draft.op)
    step = _Scale(step.scale.to(device), step.shift.to(device))
    if len(draft.shape) == 3:
        return Conv(
            step.scale.reshape(-1, 1, 1, 1), step.shift, draft.shape, groups=len(step.scale)
        )
    if len(step.scale) > _LARGEST_DIAGONAL:
        raise UnsupportedModelError(
            f"layer {draft.name!r} scales {len(step.scale)} features one by one; at most "
            f"{_LARGEST_DIAGONAL} are supported"
        )
    return Linear(torch.diag(step.scale), step.shift)
