"""Which engine and which method take a model, layer by layer, before hours are spent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from greg_cert.certify_methods import LINEAR, STATUS
from greg_cert.errors import EngineError, UnsupportedModelError
from greg_cert.verify.engine import make_engine
from greg_cert.verify.graph import Activation, Conv, Graph, Linear, Smooth
from greg_cert.verify.lipschitz import global_constant, norm_from_below, operator_norm
from greg_cert.verify.memory import sample_bytes
from greg_cert.verify.trace import trace_model

_PROBE_RADIUS = 0.05
_FEW = 2  # kinds of channels, which are named


@dataclass(frozen=True)
class Layer:
    """One operation as it is bounded.

    Attributes:
        name: of the layer in the model.
        kind: how it is bounded.
        reads: names of the layers that it reads.
        shape: of its output, without the batch.
        engines: by engine, whether it takes the layer: `yes`, or why not.
        norm: proven upper bound of the ℓ2 operator norm; None where the layer is not affine.
        norm_from_below: what power iteration reaches, which is no bound.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    shape: tuple[int, ...]
    engines: Mapping[str, str]
    norm: float | None = None
    norm_from_below: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What verification can do with a model.

    Attributes:
        layers: in order; empty where the model could not be traced.
        refusal: why it could not be, with the name of the layer; None where it could.
        engines: by engine `ready`, or why it is not.
        methods: by method which engines run it, or why none does.
        neurons: of all activations.
        bytes_a_sample: about what one sample takes.
        seconds_a_ball: what one CROWN relaxation of one sample took here; NaN where none was made.
        lipschitz: proven ℓ2 Lipschitz constant of the energy over all inputs; NaN without a graph.
    """

    layers: tuple[Layer, ...]
    refusal: str | None
    engines: Mapping[str, str]
    methods: Mapping[str, str]
    neurons: int = 0
    bytes_a_sample: int = 0
    seconds_a_ball: float = math.nan
    lipschitz: float = math.nan

    @property
    def provable(self) -> bool:
        """Whether any engine bounds the model soundly."""
        return self.refusal is None and "ready" in self.engines.values()


def diagnose(model: nn.Module, input_shape: tuple[int, ...]) -> Diagnosis:
    """See `Diagnosis`; the model is run on made-up inputs (B, *input_shape) in [0, 1]."""
    try:
        graph = trace_model(model, input_shape)
    except UnsupportedModelError as error:
        why = "a layer cannot be bounded"
        engines = dict.fromkeys(("native", "auto-lirpa"), f"no: {why}")
        return Diagnosis((), str(error), engines, _methods(engines, why))
    engines = {name: _engine(name, graph) for name in ("native", "auto-lirpa")}
    return Diagnosis(
        layers=tuple(_layer(graph, i) for i in range(len(graph.nodes))),
        refusal=None,
        engines=engines,
        methods=_methods(engines, "no engine is ready"),
        neurons=sum(math.prod(graph.nodes[i].shape) for i in graph.activations),
        bytes_a_sample=sample_bytes(graph, graph.num_classes),
        seconds_a_ball=_seconds(graph),
        lipschitz=global_constant(graph, "energy", 2.0),
    )


def _layer(graph: Graph, i: int) -> Layer:
    node = graph.nodes[i]
    reads = tuple(graph.nodes[j].name for j in node.inputs)
    lirpa = "no: a smooth activation" if isinstance(node.op, Smooth) else "yes"
    engines = {"native": "yes", "auto-lirpa": lirpa}
    layer = Layer(node.name, _kind(node.op), reads, node.shape, engines)
    if isinstance(node.op, (Conv, Linear)):
        below = norm_from_below(node.op)
        return replace(layer, norm=operator_norm(node.op), norm_from_below=below)
    return layer


def _kind(op: object) -> str:
    match op:
        case Conv():
            groups = "" if op.groups == 1 else f", {op.groups} groups"
            size = "x".join(map(str, op.weight.shape[2:]))
            return f"convolution {size}{groups}"
        case Linear():
            return "linear"
        case Activation(slope):
            return _two_lines(slope)
        case Smooth(kind):
            return f"smooth {kind}"
        case _:
            return type(op).__name__.lower()


def _two_lines(slope: float | Tensor) -> str:
    """How a function of slope 1 above zero, and this one below, is called."""
    if isinstance(slope, Tensor):
        kinds = [_two_lines(c) for c in slope.unique().tolist()]
        return " or ".join(kinds) if len(kinds) <= _FEW else f"{len(kinds)} slopes below zero"
    names = {0.0: "ReLU", 1.0: "identity", -1.0: "absolute value"}
    return names.get(slope, f"LeakyReLU {slope:g}")


def _engine(name: str, graph: Graph) -> str:
    try:
        make_engine(name, graph)
    except EngineError as error:
        return f"no: {error}"
    return "ready"


def _methods(engines: Mapping[str, str], why: str) -> dict[str, str]:
    """By method who runs it, with what its numbers are worth."""
    ready = [name for name, state in engines.items() if state == "ready"]
    found = {}
    for method, status in STATUS.items():
        able = ready
        if method in (
            "alpha-crown",
            "branch",
            "sdp-crown",
        ):  # what auto-LiRPA has not, or not on this torch
            able = [name for name in ready if name == "native"]
        bounded = method in (*LINEAR, "lipschitz")
        by = (", ".join(able) or f"no: {why}") if bounded else "any model"
        found[method] = f"{by} ({status})"
    return found


def _seconds(graph: Graph) -> float:
    engine = make_engine("native", graph)
    x = torch.full((1, *graph.input_shape), 0.5, dtype=graph.dtype, device=graph.device)
    radii = torch.full_like(x.flatten(1)[:, 0], _PROBE_RADIUS)
    engine.relax(x, radii, 2.0)  # the first one prepares what all others share
    start = time.perf_counter()
    engine.relax(x, radii, 2.0)
    return time.perf_counter() - start
