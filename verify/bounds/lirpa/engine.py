"""Bound propagation by auto-LiRPA, fed a module it bounds soundly, one scalar radius a call."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from greg_cert.errors import EngineError
from greg_cert.verify.bounds.crown import RelaxedNetwork, backward_rows
from greg_cert.verify.bounds.engine import check_method
from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.bounds.linear_bound import slope_norms, value_at_centre
from greg_cert.verify.bounds.lirpa.compat import load_auto_lirpa
from greg_cert.verify.bounds.lirpa.rebuild import RebuiltModule
from greg_cert.verify.bounds.lirpa.rounding import node_rounding
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Graph, Smooth, forward_all
from greg_cert.verify.graph.rounding import absolute_terms, interval_rounding
from greg_cert.verify.graph.smooth import SHAPES

_LARGEST_BATCH = 128  # samples a call
_CALL_ELEMENTS = 2**27  # of one coefficient tensor (neurons × widest layer × samples): 1 GiB
_SAMPLE_ELEMENTS = 2**29


class AutoLirpaEngine:
    """CROWN, or CROWN-IBP, through auto_LiRPA (Xu et al., NeurIPS 2020)."""

    name = "auto-lirpa"
    methods: tuple[str, ...] = ("crown", "crown-ibp")

    def __init__(self, graph: Graph) -> None:
        _refuse_unsound(graph)
        self._lirpa = load_auto_lirpa()
        self._graph = graph
        self._batch = _batch_size(graph)
        shape = (2, *graph.input_shape)
        probe = torch.linspace(0.0, 1.0, math.prod(shape), dtype=torch.float64, device=graph.device)
        probe = probe.reshape(shape)
        with _surroundings():
            self._module = self._lirpa.BoundedModule(
                RebuiltModule(graph), probe, bound_opts={"conv_mode": "matrix", "verbosity": 0}
            )
        self._interval_name = (  # moved from 0.3 to 0.7
            "interm_bounds"
            if "interm_bounds" in self._module.compute_bounds.__code__.co_varnames
            else "intermediate_layer_bounds"
        )
        # For each activation node auto-LiRPA's names of itself and of its input.
        self._after: dict[int, str] = {}
        self.names: Mapping[int, str] = self._match_activations(probe)

    def relax(
        self, inputs: Tensor, radii: Tensor, norm: float, method: str = "crown"
    ) -> LirpaRelaxation:
        """See `Engine.relax`. One call of auto-LiRPA for each distinct radius."""
        if method == "alpha-crown":
            raise EngineError(
                "auto-LiRPA's alpha-CROWN leaves its slopes where they begin on this torch, so it "
                "would be CROWN under another name; engine 'native' optimises them"
            )
        check_method(self, method)
        inputs = inputs.contiguous()  # auto-LiRPA takes views of flat memory
        groups = []
        for radius in radii.unique().tolist():
            for members in (radii == radius).nonzero().squeeze(1).split(self._batch):
                bounds = self._intermediate(inputs[members], radius, norm, method)
                groups.append(_Group(members, inputs[members], radius, bounds))
        return LirpaRelaxation(self, norm, tuple(groups))

    def _intermediate(
        self, x: Tensor, radius: float, norm: float, method: str
    ) -> dict[str, Interval]:
        """Bounds of what activations take in, layer by layer, each with its rounding allowed for.

        Layer by layer, because lines about one box say nothing of values that lie beyond its ends.
        """
        known: dict[int, Interval] = {}
        found: dict[str, Interval] = {}
        radii = torch.full_like(x.flatten(1)[:, 0], radius)
        with torch.no_grad():
            for i, name in self.names.items():
                if name in found:  # two activations may take in the same values
                    known[i] = found[name]
                    continue
                low, high = self._bounds_of(i, self._ball(x, radius, norm), found, method)
                source = self._graph.nodes[i].inputs[0]
                # Where intervals settle a sign, its "CROWN" keeps their ends.
                below = above = interval_rounding(self._graph, known, x, radii)[source]
                if method == "crown":
                    lower, upper = node_rounding(self._graph, known, source, x, radii)
                    below, above = below + lower, above + upper
                known[i] = found[name] = (low - below, high + above)
        return found

    def _bounds_of(
        self, activation: int, ball: Any, before: Mapping[str, Interval], method: str
    ) -> Interval:
        """auto-LiRPA's own bounds of an activation's input, from those of the layers before."""
        given: dict[str, Any] = {self._interval_name: dict(before)}
        source = self._module[self.names[activation]]
        with _surroundings():
            if method == "crown-ibp":
                given |= {"method": "IBP", "final_node_name": source.name}
            else:
                # Bounding the activation itself by no row at all leaves those of its input.
                shape = self._graph.nodes[activation].shape
                nothing = torch.zeros(len(ball), 1, *shape, dtype=ball.dtype, device=ball.device)
                name = self._after[activation]
                given |= {"method": "CROWN", "final_node_name": name, "C": nothing}
            self._module.compute_bounds(x=(ball,), **given)
        return source.lower, source.upper

    def bound_rows(self, group: _Group, norm: float, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bound at the centre and dual norm of the slope, (b, R) each."""
        with torch.no_grad():
            _, slope, offset = self._backward(group, norm, rows)
            return self._allowed(group, norm, rows, slope, offset)

    def lower_rows(self, group: _Group, norm: float, rows: Tensor) -> Tensor:
        """Lower bounds (b, R) over the group's balls; differentiable in `rows`."""
        low, slope, offset = self._backward(group, norm, rows)
        with torch.no_grad():
            centre, steepness = self._allowed(group, norm, rows.detach(), slope, offset)
            allowance = low.detach() - (centre - group.radius * steepness)
        return low - allowance.clamp_min(0.0)

    def _allowed(
        self, group: _Group, norm: float, rows: Tensor, slope: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Value at the centre, less what rounding may take, and dual norm of the slope."""
        # auto-LiRPA does not say what its offset is the sum of; our own pass does.
        last = len(self._graph.nodes) - 1
        own = {i: group.bounds[name] for i, name in self.names.items()}
        radii = torch.full_like(group.inputs.flatten(1)[:, 0], group.radius)
        terms = absolute_terms(self._graph, own, group.inputs, radii)
        size = backward_rows(RelaxedNetwork(self._graph, own, terms), last, rows)[2]
        centre = value_at_centre(slope, offset, offset.abs() + size, group.inputs)
        return centre, slope_norms(slope, norm)

    def _backward(self, group: _Group, norm: float, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, root = self._module.output_name[0], self._module.input_name[0]
        with _surroundings():
            low, _, record = self._module.compute_bounds(
                x=(self._ball(group.inputs, group.radius, norm),),
                C=rows,
                method="CROWN",
                bound_upper=False,
                return_A=True,
                needed_A_dict={output: [root]},
                **{self._interval_name: dict(group.bounds)},
            )
        found = record[output][root]
        return low, found["lA"], found["lbias"]

    def _ball(self, x: Tensor, radius: float, norm: float) -> Any:
        # math.inf and np.inf are one value; auto-LiRPA compares with ==.
        return self._lirpa.BoundedTensor(
            x, self._lirpa.PerturbationLpNorm(norm=norm, eps=float(radius))
        )

    def _match_activations(self, probe: Tensor) -> dict[int, str]:
        """Pair our activation nodes with auto-LiRPA's, by order and checked by value."""
        kinds = ("BoundRelu", "BoundLeakyRelu")
        theirs = [n for n in self._module._modules.values() if type(n).__name__ in kinds]
        with torch.no_grad(), _surroundings():
            self._module(probe)
            values = forward_all(self._graph, probe)
            if len(theirs) != len(self._graph.activations):
                raise EngineError(
                    f"auto-LiRPA sees {len(theirs)} activations where the graph has "
                    f"{len(self._graph.activations)}"
                )
            names = {}
            for i, node in zip(self._graph.activations, theirs, strict=True):
                source = node.inputs[0]
                ours = values[self._graph.nodes[i].inputs[0]]
                if not torch.allclose(source.forward_value, ours, rtol=1e-8, atol=1e-8):
                    raise EngineError(f"auto-LiRPA's {source.name!r} is not the input of node {i}")
                names[i], self._after[i] = source.name, node.name
        return names


@dataclass(frozen=True)
class _Group:
    """Samples of one radius, with their intermediate bounds by auto-LiRPA's names."""

    members: Tensor
    inputs: Tensor
    radius: float
    bounds: Mapping[str, Interval]


@dataclass(frozen=True)
class LirpaRelaxation:
    """Groups of one radius each, put together again in the caller's order."""

    engine: AutoLirpaEngine
    norm: float
    groups: tuple[_Group, ...]

    @property
    def preactivations(self) -> dict[int, Interval]:
        """See `Relaxation.preactivations`."""
        return {
            i: (
                self._gather([g.bounds[name][0] for g in self.groups]),
                self._gather([g.bounds[name][1] for g in self.groups]),
            )
            for i, name in self.engine.names.items()
        }

    def lower(self, rows: Tensor) -> Tensor:
        """See `Relaxation.lower`."""
        return self._gather(
            [self.engine.lower_rows(g, self.norm, rows[g.members]) for g in self.groups]
        )

    def linear(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Relaxation.linear`."""
        parts = [self.engine.bound_rows(g, self.norm, rows[g.members]) for g in self.groups]
        return self._gather([p[0] for p in parts]), self._gather([p[1] for p in parts])

    def _gather(self, parts: list[Tensor]) -> Tensor:
        order = torch.cat([g.members for g in self.groups]).argsort()
        return torch.cat(parts)[order]


def _refuse_unsound(graph: Graph) -> None:
    for node in graph.nodes:
        if isinstance(node.op, Smooth):
            raise EngineError(
                f"layer {node.name!r} ({SHAPES[node.op.kind].name}): engine 'auto-lirpa' is given "
                "piecewise-linear networks only; engine 'native' takes it"
            )
        if isinstance(node.op, MaxPool):
            raise EngineError(
                f"layer {node.name!r} (MaxPool2d): engine 'auto-lirpa' takes max pools of kernel = "
                "stride without padding only; engine 'native' takes it"
            )


def _batch_size(graph: Graph) -> int:
    """Samples a call that fit; memory grows as samples × neurons of a layer × widest layer."""
    widest = max(math.prod(n.shape) for n in graph.nodes)
    neurons = max((math.prod(graph.nodes[i].shape) for i in graph.activations), default=1)
    if neurons * widest > _SAMPLE_ELEMENTS:
        raise EngineError(
            f"auto-LiRPA would need about {8 * neurons * widest / 2**30:.0f} GiB for one sample: "
            f"a layer of {neurons} neurons, each with coefficients for {widest} values; "
            "engine 'native' works in chunks, method 'crown-ibp' is the fastest"
        )
    return max(1, min(_LARGEST_BATCH, _CALL_ELEMENTS // (neurons * widest)))


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """float64 throughout, and without what auto-LiRPA prints and warns of on its own account.

    0.3 makes some of its own constants in the default type, so that has to be float64 too.
    """
    before = torch.get_default_dtype()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
