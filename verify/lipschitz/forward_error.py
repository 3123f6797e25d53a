"""What logits may be off by when a network is run in floating point, measured in ℓ2.

|W||x| is what a layer's sums may lose a share of (see `greg_cert.verify.graph.rounding`), and what
it is given wrong already it multiplies by ‖W‖₂: so errors grow as the Lipschitz constant does, not
as a product of absolute weights, which at depth, and in float32, is beyond any margin.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Smooth,
)
from greg_cert.verify.graph.smooth import ALLOWANCE
from greg_cert.verify.lipschitz.global_bound import steepest_slope
from greg_cert.verify.operators.layers import absolute_bound, as_convolution
from greg_cert.verify.operators.operator_norms import operator_norm

_NORM_ROUNDING = 1.01  # of a norm of up to 2^26 numbers, summed in float32


class ForwardError:
    """Runs a graph and bounds how far its logits are from those of exact arithmetic.

    Args:
        graph: in float64, whose weights are the exact ones.
        dtype: what it is run in. float32 is for the CPU alone, whose sums are plain: convolutions
            by transforms, as GPUs may choose them, have no such bound.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype = torch.float64) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise UsageError(f"expected dtype float64 or float32, but got {dtype}")
        if dtype == torch.float32:
            precision = torch.get_float32_matmul_precision()
            if graph.device.type != "cpu" or precision != "highest":
                raise UsageError(
                    "expected float32 on the CPU in the matmul precision 'highest', whose rounding "
                    f"can be bounded, but got {precision!r} on {graph.device.type}; use float64"
                )
        self.graph, self._dtype = graph, dtype
        self._run = graph if dtype == graph.dtype else graph.to(dtype)
        self._last_reads = Counter(j for node in graph.nodes for j in node.inputs)
        self._layers = {
            i: _layer(node.op, dtype)
            for i, node in enumerate(graph.nodes)
            if isinstance(node.op, Affine)
        }

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) in float64, and what each of them is off by at most, (B,).

        At x (B, *input_shape), in float64 or in the type that the graph is run in.
        """
        eps = torch.finfo(self._dtype).eps
        start = x.to(self._dtype)
        values = {0: start}
        sizes = {0: _norm(start)}
        errors = {0: (0.0 if x.dtype == self._dtype else eps) * sizes[0]}
        reads = self._last_reads.copy()
        last = len(self.graph.nodes) - 1
        for i, node in self._run.computed:
            with torch.backends.nnpack.flags(enabled=False):  # it convolves by transforms
                value = node.op.apply(*[values[j] for j in node.inputs])
            carried = [errors[j] for j in node.inputs]
            sizes[i] = size = (
                sizes[node.inputs[0]] if isinstance(node.op, Flatten) else _norm(value)
            )
            match node.op:
                case Affine():
                    layer = self._layers[i]
                    before = sizes[node.inputs[0]]
                    if i == last and isinstance(node.op, Linear):
                        found = layer.of_rows(carried[0], before)
                    else:
                        found = layer.of_all(carried[0], before)
                case Activation():
                    found = carried[0] + eps * size
                case Smooth() as op:
                    share = ALLOWANCE * eps / torch.finfo(torch.float64).eps
                    own = share * (math.sqrt(value[0].numel()) + size)
                    found = carried[0] * steepest_slope(op) + own
                case MaxPool() as op:
                    found = carried[0] * op.lipschitz(2.0)
                case Add():
                    found = carried[0] + carried[1] + eps * size
                case Concat():
                    found = torch.stack(carried).norm(dim=0)
                case Flatten():
                    found = carried[0]
                case _:
                    assert_never(node.op)
            values[i], errors[i] = value, found * (1 + 1e-12)
            for j in node.inputs:
                reads[j] -= 1
                if reads[j] == 0:
                    del values[j]
        return values[last].double(), errors[last].nan_to_num(nan=math.inf)


@dataclass(frozen=True)
class _Layer:
    """What one affine layer adds to an error, by the ℓ2 norm of its operand.

    Attributes:
        norm: operator norm of the layer.
        longest: ℓ2 norm of its longest row.
        share: that a sum may lose of its absolute terms.
        absolute: operator norm of the absolute weights.
        bias_all: ℓ2 norm of the bias, over all outputs.
        bias_one: largest absolute bias.
    """

    norm: float
    longest: float
    share: float
    absolute: float
    bias_all: float
    bias_one: float

    def of_all(self, carried: Tensor, size: Tensor) -> Tensor:
        """ℓ2 error (B,) of the outputs."""
        return self.norm * carried + self.share * (self.absolute * size + self.bias_all)

    def of_rows(self, carried: Tensor, size: Tensor) -> Tensor:
        """Error (B,) of the output that is furthest off."""
        return self.longest * carried + self.share * (self.longest * size + self.bias_one)


def _layer(op: Conv | Linear, dtype: torch.dtype) -> _Layer:
    conv, info = as_convolution(op), torch.finfo(dtype)
    longest = float(conv.weight.flatten(1).norm(dim=1).amax()) * (1 + 1e-9)
    terms = conv.weight[0].numel() + 4  # products, additions, and the rounding of the weights
    outputs = math.prod(conv.output_shape)
    tiny = outputs * info.tiny / info.eps  # for products that underflow
    bias = op.bias.double()
    return _Layer(
        operator_norm(op),
        longest,
        terms * info.eps,
        absolute_bound(conv),
        float(bias.norm()) * math.sqrt(outputs / len(bias)) + tiny,
        float(bias.abs().amax()) + tiny,
    )


def _norm(value: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(value.flatten(1), dim=1)
    return size.double() * _NORM_ROUNDING
