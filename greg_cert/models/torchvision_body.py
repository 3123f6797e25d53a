"""The body of any image classifier that torchvision knows by name."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torchvision import models

from greg_cert.errors import UsageError
from greg_cert.models.aliases import HEADS
from greg_cert.models.base import Body
from greg_cert.models.modes import evaluating
from greg_cert.models.names import TORCHVISION_PREFIX, near_miss

# Without their auxiliary heads these return one tensor in training too.
_NO_AUXILIARY = {"aux_logits": False, "init_weights": True}
_RENUMBERED = re.compile(r"(.*\.denselayer\d+\.(?:norm|conv))(\d)")


def torchvision_body(name: str, in_channels: int, image_size: int) -> Body:
    """A torchvision classifier without weights, its last linear layer replaced by the identity.

    GoogLeNet and Inception v3 are built without their auxiliary heads. Where C is not 3, the first
    convolution is a new one of the same settings for C channels, in torch's own initialisation.

    The transformers are built for `image_size`. Parameters have torchvision's own names.

    Raises:
        UsageError: for a name that torchvision does not know, a network that is no classifier of
            images or does not end in a linear layer, or an image size that the network cannot take.

    Source: torchvision, https://docs.pytorch.org/vision/stable/models.html, where each is cited.
    """
    _check_classifier(name)
    full = f"{TORCHVISION_PREFIX}{name}"
    model = _construct(name, image_size)
    place, last = [(path, m) for path, m in model.named_modules() if not list(m.children())][-1]
    if not isinstance(last, nn.Linear):
        raise UsageError(
            "model.name: expected a network whose last layer is linear, "
            f"but got {full!r}, which ends in {type(last).__name__}"
        )
    model.set_submodule(place, nn.Identity())
    if in_channels != 3:
        _change_first_convolution(model, in_channels)
    _check_size(model, full, in_channels, image_size, last.in_features)
    return Body(model, last.in_features, _aliases(model, place))


def _check_classifier(name: str) -> None:
    classifiers = models.list_models(module=models)
    if name in classifiers:
        return
    full = f"{TORCHVISION_PREFIX}{name}"
    if name in models.list_models():
        kind = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        raise UsageError(
            "model.name: expected a classifier of images, "
            f"but got {full!r}, which is of torchvision's {kind.split('.')[0]} models"
        )
    hint = near_miss(name, classifiers, TORCHVISION_PREFIX)
    raise UsageError(f"model.name: expected a classifier of torchvision{hint}, but got {full!r}")


def _construct(name: str, image_size: int) -> nn.Module:
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = _NO_AUXILIARY
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit_"):
        options = {"input_size": (image_size, image_size)}
    try:
        model: nn.Module = models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise _misfit(TORCHVISION_PREFIX + name, image_size, error) from error
    return model


def _change_first_convolution(model: nn.Module, in_channels: int) -> None:
    path, old = next((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    model.set_submodule(path, new)


def _check_size(
    model: nn.Module, name: str, in_channels: int, image_size: int, num_features: int
) -> None:
    try:
        with evaluating(model), torch.no_grad():
            features = model(torch.zeros(1, in_channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _misfit(name, image_size, error) from error
    if features.shape != (1, num_features):
        raise UsageError(
            f"model.name: expected a network that gives features (B, {num_features}), "
            f"but got {name!r}, which gives {tuple(features.shape)} for one image"
        )


def _misfit(name: str, image_size: int, error: Exception) -> UsageError:
    return UsageError(
        f"image_size: expected a size that {name!r} can take, but got {image_size}: {error}"
    )


def _aliases(model: nn.Module, head: str) -> dict[str, str]:
    """Names in torchvision, usual names of heads where free, and names in old DenseNet files."""
    paths = {path for path, _ in model.named_modules()}
    aliases = {"": "body", **{name: "head" for name in HEADS if name not in paths}, head: "head"}
    for path in paths:
        if match := _RENUMBERED.fullmatch(path):  # norm1 was norm.1 when the weights were made
            aliases[f"{match[1]}.{match[2]}"] = f"body.{path}"
    return aliases
