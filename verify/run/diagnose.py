"""Which engine and which method take a model, layer by layer, before hours are spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from torch import Tensor, nn

from greg_cert.certificates.methods import PROOFS, STATUS
from greg_cert.errors import EngineError, UnsupportedModelError
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Op,
    Smooth,
)
from greg_cert.verify.graph.sizes import sample_bytes
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import global_constant, norm_from_below, operator_norm
from greg_cert.verify.operators.costs import iteration_operations, norm_operations
from greg_cert.verify.run.method_trials import (
    Samples,
    Tell,
    Trial,
    made_up,
    silent,
    tried_methods,
)

_NORMS_SHARE = 0.5  # of the time, that norms may take
_SPEED = 3e9  # operations a second, before any were timed
_PROBE_RADIUS = 0.05
_FEW = 2  # kinds of channels, which are named


@dataclass(frozen=True)
class Layer:
    """One operation as it is bounded; norms are None where it is not affine, or time was short."""

    name: str
    kind: str
    reads: tuple[str, ...]  # names of layers
    shape: tuple[int, ...]  # of its output, without the batch
    engines: Mapping[str, str]  # whether each takes the layer: `yes`, or why not
    norm: float | None = None  # proven upper bound of the ℓ2 operator norm
    norm_from_below: float | None = None  # what power iteration reaches, which is no bound


@dataclass(frozen=True)
class Diagnosis:
    """What verification can do with a model.

    Attributes:
        layers: in order; empty where the model could not be traced.
        refusal: why it could not be, with the name of the layer; None where it could.
        engines: by engine `ready`, or why it is not.
        methods: by method which engines run it, or why none does.
        neurons: of all activations.
        bytes_a_sample: about.
        lipschitz: proven ℓ2 Lipschitz constant of the energy over all inputs; NaN without a graph,
            or where norms are missing.
        norms_left: about how many seconds the norms would take that are missing, once a model.
        trials: what each method costs and how far it reached.
        unfinished: whether more is to come, as of `diagnosed`.
    """

    layers: tuple[Layer, ...]
    refusal: str | None
    engines: Mapping[str, str]
    methods: Mapping[str, str]
    neurons: int = 0
    bytes_a_sample: int = 0
    lipschitz: float = math.nan
    norms_left: float = 0.0
    trials: tuple[Trial, ...] = ()
    unfinished: bool = False


def diagnose(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    samples: Samples | None = None,
    seconds: float = math.inf,
) -> Diagnosis:
    """See `Diagnosis`; `diagnosed` says it piece by piece, with the same arguments."""
    *_, found = diagnosed(model, input_shape, samples=samples, seconds=seconds)
    return found


def diagnosed(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    samples: Samples | None = None,
    seconds: float = math.inf,
    tell: Tell = silent,
) -> Iterator[Diagnosis]:
    """What is known so far, again and again: layers and engines, then norms, then each method.

    Args:
        model: raw images (B, *input_shape) in [0, 1] to logits.
        input_shape: of one input.
        samples: on which methods are tried; made up where there are none.
        seconds: in which to answer, about: what is not expected to fit is left out, and says so.
        tell: called with what is begun and may take long.
    """
    deadline = time.monotonic() + seconds
    try:
        graph = trace_model(model, input_shape)
    except UnsupportedModelError as error:
        why = "a layer cannot be bounded"
        engines = dict.fromkeys(("native", "auto-lirpa"), f"no: {why}")
        yield Diagnosis((), str(error), engines, _methods(engines, why))
        return
    engines = {name: _engine(name, graph) for name in ("native", "auto-lirpa")}
    found = Diagnosis(
        layers=tuple(_layer(graph, i) for i in range(len(graph.nodes))),
        refusal=None,
        engines=engines,
        methods=_methods(engines, "no engine is ready"),
        neurons=sum(math.prod(graph.nodes[i].shape) for i in graph.activations),
        bytes_a_sample=sample_bytes(graph, graph.num_classes),
        unfinished=True,
    )
    yield found
    found = _with_norms(found, graph, deadline, tell)
    yield found
    samples = made_up(model, input_shape) if samples is None else samples
    left = found.norms_left
    for trial in tried_methods(model, graph, samples, found.lipschitz, left, deadline, tell):
        found = replace(found, trials=(*found.trials, trial))
        yield found
    yield replace(found, unfinished=False)


def _with_norms(found: Diagnosis, graph: Graph, deadline: float, tell: Tell) -> Diagnosis:
    """The diagnosis with the norms that can be proven in the time, the cheapest first."""
    until = time.monotonic() + _NORMS_SHARE * (deadline - time.monotonic())
    speed, layers, left = _SPEED, list(found.layers), 0.0
    ops = [(i, op) for i, n in enumerate(graph.nodes) if isinstance(op := n.op, (Conv, Linear))]
    for done, (i, op) in enumerate(sorted(ops, key=lambda pair: norm_operations(pair[1]))):
        tell(f"operator norm of layer {layers[i].name} ({done + 1} of {len(ops)})")
        work = norm_operations(op)
        start = time.monotonic()
        if start + work / speed > until:
            left += work / speed
            continue
        norm = operator_norm(op)
        spent = time.monotonic() - start
        if spent > 0.1:  # less says nothing of the speed
            speed = work / spent
        below = None
        if time.monotonic() + iteration_operations(op) / speed < until:
            below = norm_from_below(op)
        layers[i] = replace(layers[i], norm=norm, norm_from_below=below)
    tell("the Lipschitz constant of the energy")
    whole = math.nan if left else global_constant(graph, "energy", 2.0)
    return replace(found, layers=tuple(layers), lipschitz=whole, norms_left=left)


def _layer(graph: Graph, i: int) -> Layer:
    node = graph.nodes[i]
    reads = tuple(graph.nodes[j].name for j in node.inputs)
    lirpa = "yes"
    if isinstance(node.op, Smooth):
        lirpa = "no: a smooth activation"
    elif isinstance(node.op, MaxPool):
        lirpa = "no: windows overlap or reach over the border"
    engines = {"native": "yes", "auto-lirpa": lirpa}
    return Layer(node.name, _kind(node.op), reads, node.shape, engines)


def _kind(op: Op | Input) -> str:
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
        case MaxPool():
            return f"max pool {op.kernel[0]}x{op.kernel[1]}, {op.overlap} windows a pixel"
        case Input() | Add() | Concat() | Flatten():
            return type(op).__name__.lower()
        case _:
            assert_never(op)


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
        # Some auto-LiRPA has not, or not on this torch.
        native_alone = method in ("alpha-crown", "branch", "sdp-crown")
        able = [name for name in ready if name == "native" or not native_alone]
        by = (", ".join(able) or f"no: {why}") if method in PROOFS else "any model"
        found[method] = f"{by} ({status})"
    return found
