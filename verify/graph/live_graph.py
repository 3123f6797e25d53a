"""The canonical graph of a model that is being trained, over its own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from greg_cert.errors import UnsupportedModelError
from greg_cert.models.modes import evaluating
from greg_cert.runs.inference import device_of
from greg_cert.verify.graph.calls import Scale
from greg_cert.verify.graph.operations import batch_norm_scales
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.trace import PROBES, Translation, static_graph
from greg_cert.verify.structure import check_model, check_traceable


class LiveGraph:
    """Gives the graph that certificates walk, its weights functions of the model's parameters.

    It is the function that the model computes in evaluation mode: dropout is gone, BatchNorm scales
    by its running variance. The model runs once, here; each graph after that costs its folding.

    Args:
        model: raw images (B, *input_shape) to logits (B, K), in any mode; left as it was found.
            Its modules and parameters must stay the same objects; their values may change.
        input_shape: of one input, (C, H, W) or (D,).

    Raises:
        UnsupportedModelError: for a layer that is not in the graph's list, or one whose weight a
            hook computes.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        check_model(model)
        check_traceable(model)
        _check_parameters(model)
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand((PROBES, *input_shape), generator=generator, dtype=dtype, device="cpu")
        self._probe = probe.to(device_of(model))
        with evaluating(model), torch.no_grad():
            self._traced = static_graph(model)
            first = Translation(self._traced, self._probe, whole_pools=True)
            first.run()
        self._norms: list[Any] = [
            m for m in self._traced.modules() if isinstance(getattr(m, "running_var", None), Tensor)
        ]
        context = first.context
        # Only their sizes are asked for again.
        self._known: dict[fx.Node, Any] = {
            node: pytree.tree_map_only(Tensor, lambda t: t.new_zeros(()).expand(t.shape), value)
            for node, value in context.values.items()
            if node in context.index or node in context.parts
        }

    def __call__(self, variances: Mapping[int, Tensor] | None = None) -> Graph:
        """The graph at the values that parameters and buffers have now.

        Args:
            variances: of BatchNorm's channels, each in place of the running one of that id.
        """
        scales: dict[nn.Module, Scale] = {}
        if self._norms:
            running = [m.running_var for m in self._norms]
            used = [(variances or {}).get(id(v), v) for v in running]
            scales = dict(zip(self._norms, batch_norm_scales(self._norms, used), strict=True))
        return Translation(
            self._traced, self._probe, whole_pools=True, known=self._known, scales=scales
        ).run()


def _check_parameters(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for kind, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise UnsupportedModelError(
                    f"layer {name!r} ({type(module).__name__}) has a {kind} that a hook computes "
                    "before each pass, which cannot be followed here; use the function of "
                    "torch.nn.utils.parametrizations of that name"
                )
