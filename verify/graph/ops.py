"""A classifier as a small typed graph of affine operations and activations, in canonical form.

Everything that bounds walks this graph. Its operations are few, so that each bound is written
once: affine layers (convolution, linear), activations of two lines (ReLU to |z|), smooth ones, max
pools, addition, channel concatenation and flattening. `greg_cert.verify.graph.trace` brings a model
into this form and refuses what does not fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

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
class Affine(ABC):
    """W·x + b; `bias` (O,)."""

    weight: Tensor
    bias: Tensor

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The layer at x (B, *input shape); with another weight, and then without bias."""

    @abstractmethod
    def adjoint(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Transposed linear part, (B, *output shape) -> (B, *input shape), or of another weight."""

    @abstractmethod
    def absolute(self, x: Tensor, share: float = 1.0) -> Tensor:
        """|W|·x + share·|b| at x (B, *input shape)."""

    @abstractmethod
    def constant(self, rows: Tensor) -> Tensor:
        """rows·b (B, R) of rows (B, R, *output shape)."""

    def transposed(self, rows: Tensor) -> Tensor:
        """Wᵀ·rows of rows (B, R, *output shape)."""
        return torch.unflatten(self.adjoint(rows.flatten(0, 1)), 0, rows.shape[:2])


@dataclass(frozen=True)
class Conv(Affine):
    """2-D convolution with zero padding; `weight` (O, I/groups, kh, kw)."""

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
        kernel = self.weight.shape[2:]
        axes = zip(
            self.input_shape[1:], kernel, self.stride, self.padding, self.dilation, strict=True
        )
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
        """See `Affine.apply`."""
        bias = self.bias if weight is None else None
        weight = self.weight if weight is None else weight
        with sums_of_products(x, weight):
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """See `Affine.adjoint`."""
        if self.is_diagonal:
            return y * (self.weight if weight is None else weight).reshape(-1, 1, 1)
        if weight is None and self.matrix is not None:
            return (y.flatten(1) @ self.matrix).reshape(-1, *self.input_shape)
        weight = self.weight if weight is None else weight
        axes = zip(
            y.shape[2:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True
        )
        size = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in axes]
        # Rows that a stride larger than one leaves unread come back as zeros.
        extra = [want - got for want, got in zip(self.input_shape[1:], size, strict=True)]
        with sums_of_products(y, weight):
            return F.conv_transpose2d(
                y, weight, None, self.stride, self.padding, extra, self.groups, self.dilation
            )

    def absolute(self, x: Tensor, share: float = 1.0) -> Tensor:
        """See `Affine.absolute`."""
        return self.apply(x, self.weight.abs()) + share * self.bias.abs().reshape(-1, 1, 1)

    def constant(self, rows: Tensor) -> Tensor:
        """See `Affine.constant`."""
        return rows.sum((-2, -1)) @ self.bias


def sums_of_products(x: Tensor, weight: Tensor) -> AbstractContextManager[None]:
    """Keeps a convolution of x by `weight` (O, I, kh, kw) what allowances for rounding take it for.

    cuDNN takes kernels of one row or column through a Fourier transform, in float64 too (its
    reference of `cudnnConvolutionForward`, FFT_TILING).
    """
    kernel = tuple(weight.shape[2:])
    if x.is_cuda and 1 in kernel and kernel != (1, 1):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


@dataclass(frozen=True)
class Linear(Affine):
    """Fully connected layer; `weight` (O, I)."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(O,)."""
        return (len(self.weight),)

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """See `Affine.apply`."""
        return F.linear(x, self.weight, self.bias) if weight is None else F.linear(x, weight)

    def adjoint(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """See `Affine.adjoint`; of any leading axes."""
        return y @ (self.weight if weight is None else weight)

    def absolute(self, x: Tensor, share: float = 1.0) -> Tensor:
        """See `Affine.absolute`."""
        return F.linear(x, self.weight.abs(), share * self.bias.abs())

    def constant(self, rows: Tensor) -> Tensor:
        """See `Affine.constant`."""
        return rows @ self.bias

    def transposed(self, rows: Tensor) -> Tensor:
        """See `Affine.transposed`."""
        return self.adjoint(rows)  # flattening would change the order of sums where rows expand


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

    def apply(self, z: Tensor) -> Tensor:
        """The value at z, as torch has it."""
        return SHAPES[self.kind].torch_function(z)


NONLINEAR = (Activation, Smooth, MaxPool)  # the operations that need bounds of their inputs


class Wiring:
    """What only moves values: a sum, a concatenation, a flattening."""


@dataclass(frozen=True)
class Add(Wiring):
    """Sum of two tensors of the same shape."""

    def apply(self, left: Tensor, right: Tensor) -> Tensor:
        """Their sum."""
        return left + right


@dataclass(frozen=True)
class Concat(Wiring):
    """Concatenation along the channel (or feature) axis."""

    def apply(self, *parts: Tensor) -> Tensor:
        """(B, ...) each, behind one another."""
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Flatten(Wiring):
    """All axes but the batch, flattened in row-major order."""

    def apply(self, x: Tensor) -> Tensor:
        """(B, ...) as (B, D)."""
        return x.flatten(1)


Op = Conv | Linear | Activation | Smooth | MaxPool | Add | Concat | Flatten
"""Each has `apply`, its value (B, *shape) at the values of its operands."""


@dataclass(frozen=True)
class Node:
    """One value: its layer name in the model, operation, operand indices, shape without batch."""

    name: str
    op: Op | Input
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Computed(Node):
    """Any node but the input."""

    op: Op


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order; node 0 is the input and the last one the logits (K,)."""

    nodes: tuple[Node, ...]

    @cached_property
    def computed(self) -> list[tuple[int, Computed]]:
        """All nodes but the input, each with its index."""
        return [(i, node) for i, node in enumerate(self.nodes) if isinstance(node, Computed)]

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
        every = (node.op.weight for node in self.nodes if isinstance(node.op, Affine))
        return next(every, torch.empty(0, dtype=torch.float64, device="cpu"))

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

        def cast(op: Op | Input) -> Op | Input:
            if isinstance(op, Affine):
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


def forward_all(graph: Graph, inputs: Tensor) -> list[Tensor]:
    """Values of every node at inputs (B, *input_shape); the last one is the logits (B, K)."""
    values = [inputs]
    for _, node in graph.computed:
        values.append(node.op.apply(*[values[j] for j in node.inputs]))
    return values
