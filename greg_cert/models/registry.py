"""Models by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module

from greg_cert.errors import UsageError
from greg_cert.models.base import Body, Classifier
from greg_cert.models.names import (
    default_activation,
    expected_activation,
    expected_dropout,
    model_info,
)


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    activation: str | None = None,
    dropout: float | None = None,
) -> Classifier:
    """A freshly initialised model of the registry, on the CPU in float32.

    It takes raw [0, 1] images (B, C, H, W) to logits (B, K); normalisation is inside.
    `.features(x)` gives the (B, D) penultimate features.

    Args:
        name: one of `greg_cert.models.MODEL_NAMES`, or `torchvision/` and the name of an image
            classifier of torchvision, such as `torchvision/resnet50`.
        num_classes: K ≥ 1.
        in_channels: C ≥ 1.
        image_size: height and width of the images.
        mean: per-channel mean of raw pixels, length C.
        std: per-channel standard deviation of raw pixels, length C, each > 0.
        activation: `relu` or `maxmin` for one of `greg_cert.models.names.CHOOSE_ACTIVATION`, `relu`
            for the others; by default the model's own, `maxmin` for `lip_cnn` and `liresnet`.
        dropout: share of features that training drops, in [0, 1), of `wrn16_2` (0 by default) and
            `wrn40_2` (0.3) alone.

    Returns:
        The model, in training mode.

    Raises:
        UsageError: for an unknown name, a value out of range, or an image size that the network
            cannot take.
    """
    info = model_info(name)
    activation = default_activation(name) if activation is None else activation
    if (expected := expected_activation(name, activation)) is not None:
        raise UsageError(f"model.activation: {expected}, but got {activation!r} for {name}")
    if (expected := expected_dropout(name, dropout)) is not None:
        raise UsageError(f"model.dropout: {expected}, but got {dropout!r} for {name}")
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for field, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"expected {field} to be an integer >= 1, but got {value!r}")
    if len(mean) != in_channels or len(std) != in_channels:
        raise UsageError(
            f"expected mean and std of length in_channels = {in_channels}, "
            f"but got {len(mean)} and {len(std)}"
        )
    if not all(math.isfinite(v) for v in (*mean, *std)):
        raise UsageError(f"expected finite mean and std, but got {tuple(mean)} and {tuple(std)}")
    module, _, function = info.body.partition(":")
    make: Callable[..., Body] = getattr(import_module(f"greg_cert.models.{module}"), function)
    choice: dict[str, str | float] = {}
    if len(info.activations) > 1:
        choice["activation"] = activation
    if info.dropout is not None:
        choice["dropout"] = info.dropout if dropout is None else dropout
    body = make(in_channels=in_channels, image_size=image_size, **info.settings, **choice)
    return Classifier(
        body.module,
        body.num_features,
        num_classes=num_classes,
        mean=mean,
        std=std,
        aliases=body.aliases,
    )
