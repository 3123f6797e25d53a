"""Which linear layer a network ends in, and what enters it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from greg_cert.models.base import Classifier


class LastLayer(NamedTuple):
    """One pass of a network: logits, and where they come from an nn.Linear, what entered it.

    Attributes:
        logits: what the network gave.
        features: (B, D) penultimate features, or None.
        layer: the layer whose output on them the logits are, or None.
    """

    logits: Any
    features: Tensor | None
    layer: nn.Linear | None


def pass_with_features(model: nn.Module, x: Tensor) -> LastLayer:
    """The model on images (B, C, H, W), uncompiled.

    For a `Classifier` the features are `.features(x)` and the layer is `.head`. In any other module
    it is the nn.Linear whose output is the logits themselves, the last one of several.
    """
    if isinstance(model, Classifier):
        z = model.features(x)
        return LastLayer(model.head(z), z, model.head)
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if isinstance(layer, nn.Linear) and inputs and inputs[0].ndim == 2:
            calls.append((layer, inputs[0].clone(), out.clone()))  # others may write in place

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        # Compiled code would not see the hooks.
        logits = model._call_impl(x)
    finally:
        for handle in handles:
            handle.remove()
    for layer, z, out in reversed(calls):
        if isinstance(logits, Tensor) and out.shape == logits.shape and out.equal(logits):
            return LastLayer(logits, z, layer)
    return LastLayer(logits, None, None)
