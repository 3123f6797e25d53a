"""The canonical graph as an `nn.Module` again, in the form bound propagation takes soundly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.verify.graph.ops import Activation, Affine, Conv, Graph, Linear
from greg_cert.verify.operators.layers import undilated


class RebuiltModule(nn.Module):
    """The graph's function (B, *input_shape) -> (B, K), whose first operation is always affine.

    Where the graph begins with anything but one convolution or linear layer, an identity layer is
    put first: auto-LiRPA's ℓ2 bounds are silently unsound otherwise.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict()
        for i, node in enumerate(graph.nodes):
            if isinstance(node.op, Conv):
                self.layers[str(i)] = _conv_module(node.op)
            elif isinstance(node.op, Linear):
                self.layers[str(i)] = _linear_module(node.op)
            elif isinstance(node.op, Activation) and not is_leaky(node.op):
                # σ(z) = c·z + (1 − c)·ReLU(z), whose lines in auto-LiRPA are those of σ itself.
                slope = torch.as_tensor(node.op.negative_slope, dtype=graph.dtype)
                for name, factor in (("line", slope), ("bend", 1.0 - slope)):
                    self.layers[f"{i} {name}"] = _scaling_module(graph, factor, node.shape)
        readers = graph.consumers()[0]
        first = graph.nodes[readers[0]].op if len(readers) == 1 else None
        self.entry: nn.Module | None = None
        if not isinstance(first, Affine):
            self.entry = _scaling_module(graph, torch.ones(()), graph.input_shape)
        self.eval().requires_grad_(False)

    def _activated(self, i: int, op: Activation, z: Tensor) -> Tensor:
        if not is_leaky(op):
            out: Tensor = self.layers[f"{i} line"](z) + self.layers[f"{i} bend"](F.relu(z))
            return out
        return F.relu(z) if op.least_slope == 0.0 else F.leaky_relu(z, op.least_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        values = [x if self.entry is None else self.entry(x)]
        for i, node in self.graph.computed:
            operands = [values[j] for j in node.inputs]
            if isinstance(node.op, Affine):
                values.append(self.layers[str(i)](*operands))
            elif isinstance(node.op, Activation):
                values.append(self._activated(i, node.op, *operands))
            else:
                values.append(node.op.apply(*operands))
        return values[-1]


def _conv_module(op: Conv) -> nn.Conv2d:
    if op.dilation[0] != op.dilation[1]:  # auto-LiRPA 0.3 takes the first one for both axes
        op = undilated(op)
    out_channels, per_group, *kernel = op.weight.shape
    module = nn.Conv2d(
        per_group * op.groups,
        out_channels,
        (kernel[0], kernel[1]),
        op.stride,
        op.padding,
        op.dilation,
        op.groups,
        dtype=op.weight.dtype,
        device=op.weight.device,
    )
    module.weight.data = op.weight.contiguous()  # auto-LiRPA takes views of flat memory
    module.bias.data = op.bias.contiguous()  # type: ignore[union-attr]
    return module


def _linear_module(op: Linear) -> nn.Linear:
    module = nn.Linear(
        op.weight.shape[1], op.weight.shape[0], dtype=op.weight.dtype, device=op.weight.device
    )
    module.weight.data, module.bias.data = op.weight.contiguous(), op.bias.contiguous()
    return module


def is_leaky(op: Activation) -> bool:
    """Whether this is torch's own (Leaky)ReLU, of one slope that is not negative."""
    return not isinstance(op.negative_slope, Tensor) and op.negative_slope >= 0.0


def _scaling_module(graph: Graph, factor: Tensor, shape: tuple[int, ...]) -> nn.Module:
    """Each channel of a tensor (*shape) times its own factor; ones for the identity."""
    like = torch.empty(0, dtype=graph.dtype, device=graph.device)
    factor, zero = factor.to(like).flatten().expand(shape[0]), like.new_zeros(shape[0])
    if len(shape) == 3:
        return _conv_module(Conv(factor.reshape(-1, 1, 1, 1), zero, shape, groups=shape[0]))
    return _linear_module(Linear(torch.diag(factor), zero))
