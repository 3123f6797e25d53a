"""From an `nn.Module` to the canonical graph, by torch.fx; what does not fit is refused by name.

Canonical means: BatchNorm and other per-channel affine steps are folded into the convolution or
linear layer before them, or else written as a depthwise 1×1 convolution; pools are convolutions
(average) or convolutions with ReLU (max); dropout and identities are gone. A shift is never folded
forward into a zero-padded convolution, because that would change the border.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.runs.inference import device_of, evaluation_copy
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.graph.build import GraphBuilder
from greg_cert.verify.graph.calls import Call, Context, Scale
from greg_cert.verify.graph.channel_calls import divided
from greg_cert.verify.graph.operations import LEAVES, translate
from greg_cert.verify.graph.ops import Affine, Graph
from greg_cert.verify.scorer import check_weights
from greg_cert.verify.structure import check_model, check_traceable, says_what_it_does

_SMALLEST = 1e-100  # far beyond float32, and products of three still fit into float64
_LARGE = 10**8  # products of one input, beyond which few random points are tried
PROBES = 3  # batch of the tracing input; not 1, so that a flattened batch axis cannot pass unseen


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass that changed forward is traced through: its name says nothing of what it does.
        for leaf in LEAVES:
            if isinstance(m, leaf):
                return says_what_it_does(m, leaf)
        return super().is_leaf_module(m, module_qualified_name)


def trace_model(
    model: nn.Module, input_shape: tuple[int, ...], *, whole_pools: bool = False
) -> Graph:
    """The canonical float64 graph of a classifier in evaluation mode.

    Args:
        model: raw images (B, *input_shape) to logits (B, K); left as it was found.
        input_shape: shape of one input, (C, H, W) or (D,).
        whole_pools: make every max pool one node; else those of kernel = stride are trees of ReLU.

    Returns:
        A graph on the CPU or the model's device, checked to equal the model on random inputs.

    Raises:
        UnsupportedModelError: names the first layer that cannot be expressed, a layer with a NaN
            or infinite weight, or one that does what tracing does not see.
    """
    check_model(model)
    check_traceable(model)
    copied = evaluation_copy(model, torch.float64)
    check_weights(copied)
    for name, tensor in (*copied.named_parameters(), *copied.named_buffers()):
        size = tensor.detach().abs()[tensor != 0]
        if len(size) and not (size.min() >= _SMALLEST and size.max() <= 1 / _SMALLEST):
            raise UnsupportedModelError(
                f"expected weights of 0 or of sizes {_SMALLEST:g} to {1 / _SMALLEST:g}, whose "
                f"products fit into float64, but {name!r} holds sizes {float(size.min()):g} to "
                f"{float(size.max()):g}"
            )
    traced = static_graph(copied)
    device = device_of(copied)
    generator = torch.Generator().manual_seed(0)
    shape = (PROBES, *input_shape)
    probe = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)
    with torch.no_grad():
        graph = Translation(traced, probe, whole_pools=whole_pools).run()
    for node in graph.nodes:
        if isinstance(node.op, Affine) and not (
            node.op.weight.isfinite().all() and node.op.bias.isfinite().all()
        ):
            raise UnsupportedModelError(
                f"layer {node.name!r} scales by what is not finite: it divides by zero, or its "
                "weights leave float64"
            )
    # Outside [0, 1] too, because balls are not clipped. A large network takes seconds a point, and
    # is compared again at the samples themselves.
    shape = (5 if multiplications(graph) <= _LARGE else 2, *input_shape)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)
    for inputs in (x, x.sigmoid()):
        check_agreement(lambda x: copied(x.clone()), graph, inputs, "random inputs")
    return graph


def static_graph(model: nn.Module) -> fx.GraphModule:
    """The calls that a model in evaluation mode makes, over its own modules and parameters.

    Raises:
        UnsupportedModelError: for a model whose calls depend on its input.
    """
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # torch.fx raises many kinds, all of them mean "not a static graph"
        raise UnsupportedModelError(
            f"cannot trace {type(model).__name__} to a static graph: {error}"
        ) from error


def with_whole_pools(model: nn.Module, graph: Graph) -> Graph:
    """The graph of `model` with every max pool as one node.

    CROWN's boxes of all neurons make more of trees of ReLU; bounds over balls, which lose a factor
    a level of such a tree, make more of lines around whole windows.
    """
    names = [node.name for node in graph.nodes]
    if len(set(names)) == len(names):  # a tree is several nodes of one layer
        return graph
    return trace_model(model, graph.input_shape, whole_pools=True)


def multiplications(graph: Graph) -> int:
    """Products that one input takes."""
    return sum(
        node.op.weight.numel() * math.prod(node.shape[1:])
        for node in graph.nodes
        if isinstance(node.op, Affine)
    )


class Translation:
    """Walks the fx graph once, running it on a probe and building the canonical graph beside it.

    Args:
        traced: the calls of a model.
        probe: (PROBES, *input_shape), of the type that the graph is to have.
        whole_pools: as in `trace_model`.
        known: what depends on the probe, by its node, where that need not be run again.
        scales: what BatchNorms do, where that is known.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        probe: Tensor,
        *,
        whole_pools: bool,
        known: Mapping[fx.Node, Any] | None = None,
        scales: Mapping[nn.Module, Scale] | None = None,
    ) -> None:
        self.traced = traced
        self.probe = probe
        self.known = known or {}
        builder = GraphBuilder(tuple(probe.shape[1:]), probe.dtype)
        self.context = Context(builder, len(probe), whole_pools=whole_pools, scales=scales or {})
        self.versions: dict[fx.Node, list[int]] = {}

    def run(self) -> Graph:
        """The finished graph; every step is translated or refused."""
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return self._finish(node)
            self._step(node)
        raise UnsupportedModelError("the model returns nothing")

    def _refuse_stale(self, node: fx.Node) -> None:
        """Refuse a step that reads what was changed in place since: the graph has it as it was.

        A tensor shares its count of changes with its views and with what it is a view of.
        """
        for source in node.all_input_nodes:
            if _versions(self.context.values[source]) != self.versions[source]:
                raise UnsupportedModelError(
                    f"layer {_layer_name(node)!r} reads the result of {_layer_name(source)!r} "
                    "after an operation in place has changed it; use what that operation returns, "
                    "or one that is not in place"
                )

    def _finish(self, node: fx.Node) -> Graph:
        self._refuse_stale(node)
        out = node.args[0]
        if not isinstance(out, fx.Node) or out not in self.context.index:
            raise UnsupportedModelError("expected the model to return one tensor of logits (B, K)")
        logits = self.context.values[out]
        if logits.ndim != 2 or len(logits) != PROBES or logits.shape[1] == 0:
            raise UnsupportedModelError(
                "expected logits of shape (B, K) with K >= 1, "
                f"but got {tuple(logits.shape)} for B = {PROBES}"
            )
        return self.context.builder.finish(self.context.index[out])

    def _step(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self.context.index:
                raise UnsupportedModelError(
                    f"expected a model of one input, but {node.name!r} is a second one"
                )
            self.context.values[node], self.context.index[node] = self.probe, 0
            self.versions[node] = _versions(self.probe)
            return
        if node.op == "get_attr":
            constant = operator.attrgetter(str(node.target))(self.traced)
            self.context.values[node] = constant
            self.versions[node] = _versions(constant)
            return
        self._refuse_stale(node)
        args = fx.map_arg(node.args, lambda n: self.context.values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self.context.values[n])
        name = _layer_name(node)
        target: Any = node.target
        if node.op == "call_module":
            target = self.traced.get_submodule(str(node.target))
        value = self.known[node] if node in self.known else self._run(node, target, args, kwargs)
        self.context.values[node] = value
        self.versions[node] = _versions(value)
        context = self.context
        operands = [n for n in node.all_input_nodes if n in context.index or n in context.parts]
        if not operands or _is_shape_query(node):
            return
        call = Call(self.context, node, name, target, args, kwargs)
        if not isinstance(value, Tensor) or target is torch.stack:
            context.parts[node] = divided(call)
            return
        translated = translate(call)
        if self.context.builder.shape(translated) != tuple(value.shape[1:]):
            raise call.refuse("its output shape was not understood")
        self.context.index[node] = translated

    def _run(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> Any:
        """The value of a call."""
        try:
            if node.op == "call_method":
                return getattr(args[0], str(target))(*args[1:], **kwargs)
            return target(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise UsageError(
                f"layer {_layer_name(node)!r} fails on inputs of shape "
                f"{tuple(self.probe.shape[1:])}: {error}"
            ) from error


def _versions(value: object) -> list[int]:
    """How often each tensor of a result has been changed in place."""
    several = value if isinstance(value, (tuple, list)) else [value]
    return [v._version for v in several if isinstance(v, Tensor)]


def _is_shape_query(node: fx.Node) -> bool:
    """Whether a call only asks for sizes, which are the same for every input."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    return node.target is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")


def _layer_name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else str(node.name)
