"""A classifier as a small typed graph of affine operations and activations, in canonical form.

Everything that bounds walks this graph. Its operations are few, so that each bound is written
once: affine layers (convolution, linear), activations of two lines (ReLU to |z|), smooth ones, max
pools, addition, channel concatenation and flattening. `greg_cert.verify.graph.trace` brings a model
into this form and refuses what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.smooth import SHAPES

LARGEST_MATRIX = 2**18  # elements; a layer is written out as a matrix up to this size


@dataclass(frozen=True)
class Input:
    """The raw image."""


@dataclass(frozen=True)
class Conv:
    """2-D convolution with zero padding; `weight` (O, I/groups, kh, kw), `bias` (O,)."""

    weight: Tensor
    bias: Tensor
    input_shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_diagonal(self) -> bool:
        """Whether this only scales and shifts each channel."""
        pointwise = self.weight.shape[1:] == (1, 1, 1) and self.groups == len(self.weight)
        return pointwise and self.stride == (1, 1) and self.padding == (0, 0)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """(O, H', W')."""
        # By hand: a convolution on the meta device would import sympy, which takes seconds.
        axes = zip(
            self.input_shape[1:], self.weight.shape[2:], self.stride, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        image = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
        return (len(self.weight), *image)

    @cached_property
    def matrix(self) -> Tensor | None:
        """The linear part written out, (outputs, inputs), where that is small; else None.

        Backward passes in float64 run several times faster through it than through a convolution.
        """
        size = math.prod(self.input_shape)
        if size * math.prod(self.output_shape) > LARGEST_MATRIX:
            return None
        eye = torch.eye(size, dtype=self.weight.dtype, device=self.weight.device)
        return self.apply(eye.unflatten(1, self.input_shape), self.weight).flatten(1).T.contiguous()

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """This convolution of x (B, *input_shape); with another weight, and then without bias."""
        bias = self.bias if weight is None else None
        weight = self.weight if weight is None else weight
        with sums_of_products(x, weight):
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Transposed linear part, (B, *output_shape) -> (B, *input_shape), or of another weight."""
        if self.is_diagonal:
            return y * (self.weight if weight is None else weight).reshape(-1, 1, 1)
        if weight is None and self.matrix is not None:
            return (y.flatten(1) @ self.matrix).reshape(-1, *self.input_shape)
        weight = self.weight if weight is None else weight
        size = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                y.shape[2:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True
            )
        ]
        # Rows that a stride larger than one leaves unread come back as zeros.
        extra = [want - got for want, got in zip(self.input_shape[1:], size, strict=True)]
        with sums_of_products(y, weight):
            return F.conv_transpose2d(
                y, weight, None, self.stride, self.padding, extra, self.groups, self.dilation
            )


def sums_of_products(x: Tensor, weight: Tensor) -> AbstractContextManager[None]:
    """Keeps a convolution of x by `weight` (O, I, kh, kw) what allowances for rounding take it for.

    cuDNN takes kernels of one row or column through a Fourier transform, in float64 too (its
    reference of `cudnnConvolutionForward`, FFT_TILING).
    """
    kernel = tuple(weight.shape[2:])
    if x.is_cuda and 1 in kernel and kernel != (1, 1):
        off: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
        return off
    return nullcontext()


@dataclass(frozen=True)
class Linear:
    """Fully connected layer; `weight` (O, I), `bias` (O,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Activation:
    """z above zero and c·z below, c in [−1, 1]: 0 is ReLU, −1 is |z|, which is not monotone.

    Attributes:
        negative_slope: c; or one for each channel, (C, 1, 1) or (D,), of which some may be 1: those
            channels are left as they are.
    """

    negative_slope: float | Tensor = 0.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Activation):
            return NotImplemented
        mine, theirs = self.negative_slope, other.negative_slope
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            return torch.equal(mine, theirs)
        return not isinstance(mine, Tensor) and not isinstance(theirs, Tensor) and mine == theirs

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def least_slope(self) -> float:
        """The smallest c of all channels."""
        slope = self.negative_slope
        return float(slope.min()) if isinstance(slope, Tensor) else slope

    @cached_property
    def bends(self) -> Tensor | None:
        """Where c is not 1, so that the function is not linear; None where that is everywhere."""
        if not isinstance(self.negative_slope, Tensor):
            return None
        found = self.negative_slope != 1.0
        return None if bool(found.all()) else found

    def apply(self, z: Tensor) -> Tensor:
        """The value at z (..., *shape)."""
        if isinstance(self.negative_slope, Tensor):
            return torch.where(z > 0, z, self.negative_slope * z)
        return F.leaky_relu(z, self.negative_slope)


@dataclass(frozen=True)
class Smooth:
    """A smooth activation, `kind` a key of `greg_cert.verify.graph.smooth.SHAPES`."""

    kind: str


NONLINEAR = (Activation, Smooth, MaxPool)  # the operations that need bounds of their inputs


@dataclass(frozen=True)
class Add:
    """Sum of two tensors of the same shape."""


@dataclass(frozen=True)
class Concat:
    """Concatenation along the channel (or feature) axis."""


@dataclass(frozen=True)
class Flatten:
    """All axes but the batch, flattened in row-major order."""


Op = Input | Conv | Linear | Activation | Smooth | MaxPool | Add | Concat | Flatten


@dataclass(frozen=True)
class Node:
    """One operation: its layer name in the model, operand indices, output shape without batch."""

    name: str
    op: Op
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order; node 0 is the input and the last one the logits (K,)."""

    nodes: tuple[Node, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W), or (D,) for a model on vectors."""
        return self.nodes[0].shape

    @property
    def num_classes(self) -> int:
        """K."""
        return self.nodes[-1].shape[0]

    @property
    def _weights(self) -> Tensor:
        for node in self.nodes:
            if isinstance(node.op, (Conv, Linear)):
                return node.op.weight
        return torch.empty(0, dtype=torch.float64, device="cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights; float64 for a graph without any."""
        return self._weights.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a graph without any."""
        return self._weights.device

    @property
    def activations(self) -> tuple[int, ...]:
        """Indices of the activation nodes, max pools among them, in topological order."""
        return tuple(i for i, n in enumerate(self.nodes) if isinstance(n.op, NONLINEAR))

    def to(self, dtype: torch.dtype) -> Graph:
        """The same graph with its weights in another floating type."""

        def cast(op: Op) -> Op:
            if isinstance(op, (Conv, Linear)):
                return replace(op, weight=op.weight.to(dtype), bias=op.bias.to(dtype))
            if isinstance(op, Activation) and isinstance(op.negative_slope, Tensor):
                return Activation(op.negative_slope.to(dtype))
            return op

        return Graph(tuple(replace(n, op=cast(n.op)) for n in self.nodes))

    def consumers(self) -> list[list[int]]:
        """For each node the indices of the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                readers[j].append(i)
        return readers


def apply_op(op: Op, operands: Sequence[Tensor]) -> Tensor:
    """Value (B, ...) of an operation at the values of its operands."""
    match op:
        case Conv():
            return op.apply(operands[0])
        case Linear():
            return F.linear(operands[0], op.weight, op.bias)
        case Activation():
            return op.apply(operands[0])
        case Smooth(kind):
            return SHAPES[kind].torch_function(operands[0])
        case MaxPool():
            return op.apply(operands[0])
        case Add():
            return operands[0] + operands[1]
        case Concat():
            return torch.cat(list(operands), dim=1)
        case Flatten():
            return operands[0].flatten(1)
        case Input():
            raise AssertionError("the input is computed by nothing")
        case _:
            assert_never(op)


def forward_all(graph: Graph, inputs: Tensor) -> list[Tensor]:
    """Values of every node at inputs (B, *input_shape); the last one is the logits (B, K)."""
    values = [inputs]
    for node in graph.nodes[1:]:
        values.append(apply_op(node.op, [values[i] for i in node.inputs]))
    return values
