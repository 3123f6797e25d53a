"""Which models there are: a line for each, read without importing torch or torchvision.

A new model is a function in a file of this folder and one line here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from greg_cert.errors import UsageError

TORCHVISION_PREFIX = "torchvision/"


@dataclass(frozen=True)
class ModelInfo:
    """Where a model's body is made, and of what.

    Attributes:
        body: `file:function` in this folder, called with `in_channels`, `image_size` and `settings`
            by name, and with `activation` and `dropout` where there is a choice; it gives a
            `greg_cert.models.base.Body`, and its docstring the source.
        settings: Other arguments of it.
        activations: That may be chosen, the default first; `relu` also stands for fixed ones.
        dropout: Share of features that training drops by default; None where there is no choice.
    """

    body: str
    settings: Mapping[str, int | float | str] = field(default_factory=dict)
    activations: tuple[str, ...] = ("relu",)
    dropout: float | None = None


_TORCHVISION = "torchvision_body:torchvision_body"
_WIDE = "wide_resnet:wide_resnet_body"
_RELU, _MAXMIN = ("relu", "maxmin"), ("maxmin", "relu")
MODELS: Mapping[str, ModelInfo] = MappingProxyType(
    {
        "mlp": ModelInfo("small:mlp_body", activations=_RELU),
        "cnn_small": ModelInfo("small:cnn_small_body", activations=_RELU),
        "lip_cnn": ModelInfo("small:lip_cnn_body", activations=_MAXMIN),
        "liresnet": ModelInfo("liresnet:liresnet_body", activations=_MAXMIN),
        "resnet18_32x32": ModelInfo("resnet:resnet18_body"),
        "wrn16_2": ModelInfo(_WIDE, {"depth": 16, "widen": 2}, dropout=0.0),
        "wrn40_2": ModelInfo(_WIDE, {"depth": 40, "widen": 2}, dropout=0.3),
        "densenet100": ModelInfo("densenet:densenet_body", {"depth": 100, "growth": 12}),
        "densenet121": ModelInfo(_TORCHVISION, {"name": "densenet121"}),
    }
)
MODEL_NAMES: tuple[str, ...] = tuple(MODELS)

ACTIVATION_NAMES: tuple[str, ...] = _RELU
CHOOSE_ACTIVATION: tuple[str, ...] = tuple(n for n, m in MODELS.items() if len(m.activations) > 1)
"""Models that take another activation than ReLU."""

_NEAR = 0.7  # resnet50 is not near densenet100
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")


def model_info(name: str) -> ModelInfo:
    """The line of a model, or one of torchvision's.

    Raises:
        UsageError: for a name that `is_model_name` does not know; the message lists the choices and
            the nearest one.
    """
    check_model_name(name)
    if name.startswith(TORCHVISION_PREFIX):
        return ModelInfo(_TORCHVISION, {"name": name.removeprefix(TORCHVISION_PREFIX)})
    return MODELS[name]


def is_model_name(name: str) -> bool:
    """Whether `name` may name a model: one of `MODEL_NAMES`, or `torchvision/` and an identifier.

    Whether torchvision has a classifier of that name is known only once the model is built.
    """
    if name.startswith(TORCHVISION_PREFIX):
        return _IDENTIFIER.fullmatch(name.removeprefix(TORCHVISION_PREFIX)) is not None
    return name in MODELS


def check_model_name(name: str) -> str:
    """The name itself, where `is_model_name` holds.

    Raises:
        UsageError: for any other name; the message lists the choices and the nearest one.
    """
    if not is_model_name(name):
        raise UsageError(f"model.name: {expected_model_name(name)}, but got {name!r}")
    return name


def default_activation(name: str) -> str:
    """The activation of a model where none is given; `relu` also stands for a model's fixed ones.

    Any text will do for the name, as it may not have been judged yet.
    """
    return MODELS[name].activations[0] if name in MODELS else "relu"


def expected_activation(name: str, activation: str) -> str | None:
    """What the activation of a model may be, where it may not be this one; else None.

    That is the part of an error message before "but got".
    """
    if activation == "relu" or (name in CHOOSE_ACTIVATION and activation in ACTIVATION_NAMES):
        return None
    able = ", ".join(CHOOSE_ACTIVATION)
    return f"expected relu, or with one of {able} one of {', '.join(ACTIVATION_NAMES)}"


def default_dropout(name: str) -> float | None:
    """The dropout of a model where none is given; None where it has no such choice."""
    return MODELS[name].dropout if name in MODELS else None


def expected_dropout(name: str, dropout: float | None) -> str | None:
    """As `expected_activation`, of dropout."""
    able = [n for n, m in MODELS.items() if m.dropout is not None]
    if dropout is None or (name in able and 0 <= dropout < 1):
        return None
    return f"expected none, or with one of {', '.join(able)} one in [0, 1)"


def expected_model_name(name: str) -> str:
    """What a model's name may be, and which known name is nearest to an unknown one.

    That is the part of an error message before "but got".
    """
    choices = f"expected one of {', '.join(MODEL_NAMES)} or {TORCHVISION_PREFIX}<classifier>"
    lower = name.lower()
    # Of the same first letter: resnet18 is meant for resnet18_32x32, though nearer to liresnet.
    known = (lower,) if is_model_name(lower) else [n for n in MODEL_NAMES if n[:1] == lower[:1]]
    return choices + near_miss(lower, known)


def near_miss(name: str, known: Sequence[str], prefix: str = "") -> str:
    """A hint at the known name nearest to an unknown one, or nothing where none is near.

    The hint is " (did you mean '…'?)", with `prefix` before the name.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    return f" (did you mean {prefix + near[0]!r}?)" if near else ""
