"""Models by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from greg_cert.errors import UsageError
from greg_cert.models.base import Body, Classifier
from greg_cert.models.densenet import densenet_body
from greg_cert.models.lip_cnn import lip_cnn_body
from greg_cert.models.liresnet import liresnet_body
from greg_cert.models.names import (
    TORCHVISION_PREFIX,
    check_model_name,
    default_activation,
    expected_activation,
)
from greg_cert.models.resnet import resnet18_body
from greg_cert.models.small import cnn_small_body, mlp_body
from greg_cert.models.wide_resnet import wide_resnet_body


def _torchvision_body(name: str, in_channels: int, image_size: int) -> Body:
    from greg_cert.models.torchvision_body import torchvision_body  # takes seconds to import

    return torchvision_body(name, in_channels, image_size)


# One entry for each of `CHOOSE_ACTIVATION`.
_WITH_ACTIVATION: Mapping[str, Callable[[int, int, str], Body]] = {
    "mlp": lambda channels, size, act: mlp_body(channels, size, activation=act),
    "cnn_small": lambda channels, size, act: cnn_small_body(channels, size, activation=act),
    "lip_cnn": lambda channels, size, act: lip_cnn_body(channels, size, activation=act),
    "liresnet": lambda channels, size, act: liresnet_body(channels, size, activation=act),
}
# One entry for each of the other `MODEL_NAMES`.
_BODIES: Mapping[str, Callable[[int, int], Body]] = {
    "resnet18_32x32": lambda channels, _: resnet18_body(channels),
    "wrn16_2": lambda channels, _: wide_resnet_body(channels, 16, 2),
    "wrn40_2": lambda channels, _: wide_resnet_body(channels, 40, 2, dropout=0.3),
    "densenet100": lambda channels, size: densenet_body(channels, size, depth=100, growth=12),
    "densenet121": lambda channels, size: _torchvision_body("densenet121", channels, size),
}


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    activation: str | None = None,
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

    Returns:
        The model, in training mode.

    Raises:
        UsageError: for an unknown name, a value out of range, or an image size that the network
            cannot take.
    """
    check_model_name(name)
    activation = default_activation(name) if activation is None else activation
    if (expected := expected_activation(name, activation)) is not None:
        raise UsageError(f"model.activation: {expected}, but got {activation!r} for {name}")
    for field, value in (
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("image_size", image_size),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"expected {field} to be an integer >= 1, but got {value!r}")
    if len(mean) != in_channels or len(std) != in_channels:
        raise UsageError(
            f"expected mean and std of length in_channels = {in_channels}, "
            f"but got {len(mean)} and {len(std)}"
        )
    if not all(math.isfinite(v) for v in (*mean, *std)):
        raise UsageError(f"expected finite mean and std, but got {tuple(mean)} and {tuple(std)}")
    if name.startswith(TORCHVISION_PREFIX):
        body = _torchvision_body(name.removeprefix(TORCHVISION_PREFIX), in_channels, image_size)
    elif name in _WITH_ACTIVATION:
        body = _WITH_ACTIVATION[name](in_channels, image_size, activation)
    else:
        body = _BODIES[name](in_channels, image_size)
    return Classifier(
        body.module,
        body.num_features,
        num_classes=num_classes,
        mean=mean,
        std=std,
        aliases=body.aliases,
    )
