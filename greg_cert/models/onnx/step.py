"""One operation of an ONNX file, with its operands at two probes of the batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from greg_cert.errors import UnsupportedModelError

PROBES = (2, 3)  # images in each
MOST = 2**26  # values of an image, or of a constant that is computed
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Known:
    """What does not depend on the image, at each probe: weights, and sizes of tensors."""

    arrays: tuple[Array, ...]

    @property
    def constant(self) -> bool:
        """Whether it does not depend on the number of images either."""
        return all(np.array_equal(self.arrays[0], a) for a in self.arrays[1:])


@dataclass(frozen=True)
class Traced:
    """What is computed from the image: its place in the graph, and its value at each probe."""

    node: fx.Node
    values: tuple[Tensor, ...]
    sigmoid_of: fx.Node | None = None  # the node whose sigmoid this is, where it is one


@dataclass
class State:
    """What a walk has made so far."""

    fixed_batch: bool  # the file is written for one image: a leading 1 is the batch
    opset: int
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    values: dict[str, Known | Traced] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def free_name(self, wanted: str) -> str:
        """A name that no layer has yet, of letters, digits and underscores."""
        base = re.sub(r"\W+", "_", wanted).strip("_") or "layer"
        base = base if base[0].isalpha() else f"layer_{base}"
        name, n = base, 1
        while name in self.names or hasattr(nn.Module, name):
            name, n = f"{base}_{n}", n + 1
        self.names.add(name)
        return name


@dataclass(frozen=True)
class Step:
    """One operation with its operands, and the way to refuse it."""

    state: State
    proto: Any
    attributes: dict[str, Any]

    @property
    def name(self) -> str:
        """Its own name, or that of its result."""
        return str(self.proto.name or next(iter(self.proto.output), ""))

    @property
    def count(self) -> int:
        """Number of operands."""
        return len(self.proto.input)

    def refuse(self, why: str) -> UnsupportedModelError:
        """The error that names this operation."""
        return UnsupportedModelError(
            f"model.onnx: layer {self.name!r} ({self.proto.op_type}) cannot be read: {why}"
        )

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, or what stands for it where it is not given."""
        return self.attributes.get(name, default)

    def pair(self, name: str) -> tuple[int, int]:
        """An attribute with a number for rows and one for columns; 1 where it is not given."""
        values = list(self.attribute(name, (1, 1)))
        if len(values) != 2:
            raise self.refuse(f"expected two numbers in {name}, but got {values}")
        return int(values[0]), int(values[1])

    def given(self, i: int) -> bool:
        """Whether operand i is there: optional ones may be left out or be empty."""
        return len(self.proto.input) > i and self.proto.input[i] != ""

    def _value(self, i: int) -> Known | Traced:
        return self.state.values[self.proto.input[i]]

    def operand(self, i: int = 0) -> Traced:
        """Operand i, which has to depend on the image."""
        value = self._value(i)
        if not isinstance(value, Traced):
            raise self.refuse(f"expected operand {i} to be computed from the image")
        return value

    def constant(self, i: int) -> Tensor:
        """Operand i as a tensor that depends on nothing."""
        value = self._value(i)
        if isinstance(value, Traced):
            raise self.refuse(f"expected operand {i} to be a constant, not computed from the image")
        if not value.constant:
            raise self.refuse(f"operand {i} depends on the number of images in the batch")
        return torch.from_numpy(np.array(value.arrays[0]))

    def operand_or_constant(self, i: int) -> Traced | Tensor:
        """Operand i, whichever it is; constants as float32."""
        return v if isinstance(v := self._value(i), Traced) else self.constant(i).float()

    def integers(self, i: int) -> list[int]:
        """Constant operand i as integers."""
        return [int(v) for v in self.constant(i).flatten().tolist()]

    def numbers(self, i: int, name: str) -> list[int]:
        """Integers that are operand i in newer operator sets and an attribute in older ones."""
        return self.integers(i) if self.given(i) else list(self.attribute(name, []))

    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of the first operand at each probe."""
        return [tuple(v.shape) for v in self.operand().values]

    def shape(self) -> tuple[int, ...]:
        """Shape of the first operand, without the batch."""
        return self.shapes()[0][1:]

    def pairs(self, i: int) -> list[tuple[list[int], tuple[int, ...]]]:
        """At each probe the integers of operand i and the shape of the first operand."""
        value = self._value(i)
        if isinstance(value, Traced):
            raise self.refuse(f"expected operand {i} not to be computed from the image")
        targets = [[int(v) for v in a.reshape(-1).tolist()] for a in value.arrays]
        return list(zip(targets, self.shapes(), strict=True))

    def is_sigmoid_of(self, gate: int, through: int) -> bool:
        """Whether operand `gate` is the sigmoid of operand `through`."""
        a, b = self._value(gate), self._value(through)
        return isinstance(a, Traced) and isinstance(b, Traced) and a.sigmoid_of is b.node

    def layer(self, module: nn.Module, x: Traced | None = None) -> Traced:
        """The module applied to x, by default the first operand."""
        x = self.operand() if x is None else x
        name = self.state.free_name(self.name)
        self.state.root.add_module(name, module.eval())
        node = self.state.graph.call_module(name, (x.node,))
        sigmoid = x.node if isinstance(module, nn.Sigmoid) else None
        return Traced(node, self._run(module, [[v] for v in x.values]), sigmoid)

    def call(self, function: Callable[..., Tensor], *args: Any) -> Traced:
        """A function of operands, lists of them, tensors that are kept as buffers, and numbers."""
        nodes = [self._node(a) for a in args]
        inputs = [[_at(a, k) for a in args] for k in range(len(PROBES))]
        return Traced(
            self.state.graph.call_function(function, tuple(nodes)), self._run(function, inputs)
        )

    def _run(self, function: Callable[..., Tensor], inputs: list[list[Any]]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(function(*given) for given in inputs)

    def _node(self, value: Any) -> Any:
        if isinstance(value, Traced):
            return value.node
        if isinstance(value, list):
            return [self._node(v) for v in value]
        if isinstance(value, Tensor):
            name = self.state.free_name(f"{self.name}_constant")
            self.state.root.register_buffer(name, value)
            return self.state.graph.get_attr(name)
        return value

    def reshaped(self, shapes: list[list[int]]) -> Traced:
        """The first operand in these shapes, one a probe, where they keep the samples apart."""
        kept = [list(shape[1:]) for shape in shapes]
        if [s[0] if s else 0 for s in shapes] != list(PROBES) or any(k != kept[0] for k in kept):
            raise self.refuse(
                "it mixes the samples of a batch, or holds a batch size of its own: export with a "
                "dynamic batch axis"
            )
        if kept[0] == list(self.shape()):
            return self.operand()
        if len(kept[0]) == 1:
            return self.layer(nn.Flatten())
        return self.call(torch.reshape, self.operand(), [-1, *kept[0]])


def _at(value: Any, probe: int) -> Any:
    if isinstance(value, list):
        return [_at(v, probe) for v in value]
    return value.values[probe] if isinstance(value, Traced) else value
