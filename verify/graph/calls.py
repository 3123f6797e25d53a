"""One call of a traced model: what it is given, what it may ask, and the way to refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph.build import GraphBuilder

_SUPPORTED = (
    "Conv2d, Linear, BatchNorm, ReLU, LeakyReLU, PReLU, abs, clamp, MaxMin, Hardtanh, ReLU6, "
    "Sigmoid, Tanh, Softplus, SiLU, GELU, ELU (alpha 1), addition, channel concatenation, average "
    "pools, MaxPool2d, Flatten, Dropout and per-channel constants"
)

_GATE = "leave out the gate (squeeze-and-excitation), or use a network without, such as a ResNet"
_NORM = "use BatchNorm2d there, whose statistics are fixed in evaluation"
_SMOOTH = "use SiLU in its place, and no squeeze-and-excitation"
_SHUFFLE = "mix channels by a 1x1 convolution instead of moving them"
_ATTENTION = "use a convolutional network: attention is not bounded here"

_INSTEAD = {  # of layers that networks often have and that are not bounded here
    "AdaptiveAvgPool2d": "use AdaptiveAvgPool2d(1), or images whose feature maps it divides",
    "adaptive_avg_pool2d": "pool to one pixel, or use images whose feature maps it divides",
    "AdaptiveMaxPool2d": "use MaxPool2d with a kernel, or AdaptiveAvgPool2d(1)",
    "AvgPool2d": "leave ceil_mode off and count_include_pad on, or pad by a layer of its own",
    "Mish": "use SiLU or GELU in its place",
    "Hardswish": _SMOOTH,
    "hardswish": _SMOOTH,
    "Hardsigmoid": "use Sigmoid in its place",
    "LayerNorm": _NORM,
    "LayerNorm2d": _NORM,
    "layer_norm": _NORM,
    "GroupNorm": _NORM,
    "InstanceNorm2d": _NORM,
    "BatchNorm2d": "train it with track_running_stats=True",
    "mul": _GATE,
    "Softmax": _ATTENTION,
    "softmax": _ATTENTION,
    "MultiheadAttention": _ATTENTION,
    "scaled_dot_product_attention": _ATTENTION,
    "Conv2d": "use padding_mode='zeros' and a symmetric padding",
    "Conv1d": "use Conv2d with a kernel of 1 on one axis",
    "transpose": _SHUFFLE,
    "view": _SHUFFLE,
    "reshape": _SHUFFLE,
    "permute": "keep channels first; where that is for LayerNorm, use BatchNorm2d",
}

Scale = tuple[Tensor, Tensor]
"""What each channel is multiplied by, and what is added to it."""


@dataclass(frozen=True)
class Context:
    """State of a translation: the graph so far and what the probe batch gives at each fx node."""

    builder: GraphBuilder
    batch: int
    values: dict[fx.Node, Any] = field(default_factory=dict)
    index: dict[fx.Node, int] = field(default_factory=dict)  # canonical node, if not a constant
    parts: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)  # nodes of a tuple
    whole_pools: bool = False  # whether max pools that could be trees of ReLU are not
    scales: Mapping[nn.Module, Scale] = field(default_factory=dict)  # of BatchNorm, where known


@dataclass(frozen=True)
class Call:
    """One fx call, with its concrete arguments and the way to refuse it."""

    context: Context
    node: fx.Node
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def builder(self) -> GraphBuilder:
        """The graph so far."""
        return self.context.builder

    @property
    def value(self) -> Tensor:
        """What this call gives on the probe."""
        out: Tensor = self.context.values[self.node]
        return out

    def refuse(self, why: str) -> UnsupportedModelError:
        """The error that names this layer and what is supported."""
        module = isinstance(self.target, nn.Module)
        kind = (
            type(self.target).__name__ if module else getattr(self.target, "__name__", self.target)
        )
        change = f"{_INSTEAD[kind]}; or else " if kind in _INSTEAD else ""
        return UnsupportedModelError(
            f"layer {self.name!r} ({kind}) cannot be bounded soundly: {why}. A way on: {change}"
            f"take the method smoothing, which needs no bounds of layers. Supported: {_SUPPORTED}"
        )

    def operand(self, position: int = 0, name: str | None = None) -> int:
        """Canonical index of an argument that depends on the input, by position or by name."""
        index = self._computed(position, name)
        if index is not None:
            return index
        raise self.refuse(f"expected argument {position} to be computed from the input")

    def argument(self, position: int, name: str, default: Any) -> Any:
        """A parameter of the call, by position or by name; it may not depend on the input."""
        if self._computed(position, name) is not None:
            raise self.refuse(f"expected {name} not to be computed from the input")
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def _computed(self, position: int, name: str | None) -> int | None:
        """Canonical index of an argument, None where it does not depend on the input."""
        given = self.node.args[position] if len(self.node.args) > position else None
        if name in self.node.kwargs:
            given = self.node.kwargs[name]
        return self.context.index.get(given) if isinstance(given, fx.Node) else None

    def attribute(self, position: int, name: str, default: Any = None) -> Any:
        """A setting: an attribute of a module, or a parameter of a function."""
        if isinstance(self.target, nn.Module):
            return getattr(self.target, name, default)
        return self.argument(position, name, default)
