"""Which names of models there are, told without importing torch or torchvision."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from greg_cert.errors import UsageError

TORCHVISION_PREFIX = "torchvision/"

MODEL_NAMES: tuple[str, ...] = (
    "mlp",
    "cnn_small",
    "lip_cnn",
    "liresnet",
    "resnet18_32x32",
    "wrn16_2",
    "wrn40_2",
    "densenet100",
    "densenet121",
)

ACTIVATION_NAMES: tuple[str, ...] = ("relu", "maxmin")
CHOOSE_ACTIVATION: tuple[str, ...] = ("mlp", "cnn_small", "lip_cnn", "liresnet")
"""Models that take another activation than ReLU."""
_MAXMIN_BY_DEFAULT = ("lip_cnn", "liresnet")

_NEAR = 0.7  # resnet50 is not near densenet100
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")


def is_model_name(name: str) -> bool:
    """Whether `name` may name a model: one of `MODEL_NAMES`, or `torchvision/` and an identifier.

    Whether torchvision has a classifier of that name is known only once the model is built.

    Args:
        name: text to judge.

    Returns:
        True where `build_model` might know the name.
    """
    if name.startswith(TORCHVISION_PREFIX):
        return _IDENTIFIER.fullmatch(name.removeprefix(TORCHVISION_PREFIX)) is not None
    return name in MODEL_NAMES


def check_model_name(name: str) -> str:
    """The name itself, where `is_model_name` holds.

    Args:
        name: text to judge.

    Returns:
        `name`, unchanged.

    Raises:
        UsageError: for any other name; the message lists the choices and the nearest one.
    """
    if not is_model_name(name):
        raise UsageError(f"model.name: {expected_model_name(name)}, but got {name!r}")
    return name


def default_activation(name: str) -> str:
    """The activation of a model where none is given; `relu` also stands for a model's fixed ones.

    Args:
        name: a model's name.

    Returns:
        One of `ACTIVATION_NAMES`.
    """
    return "maxmin" if name in _MAXMIN_BY_DEFAULT else "relu"


def expected_activation(name: str, activation: str) -> str | None:
    """What the activation of a model may be, where it may not be this one; else None.

    Args:
        name: a model's name.
        activation: what was given.

    Returns:
        The part of an error message before "but got".
    """
    if activation == "relu" or (activation in ACTIVATION_NAMES and name in CHOOSE_ACTIVATION):
        return None
    able = ", ".join(CHOOSE_ACTIVATION)
    return f"expected relu, or with one of {able} one of {', '.join(ACTIVATION_NAMES)}"


def expected_model_name(name: str) -> str:
    """What a model's name may be, and which known name is nearest to `name`.

    Args:
        name: a name that `is_model_name` does not know.

    Returns:
        The part of an error message before "but got".
    """
    choices = f"expected one of {', '.join(MODEL_NAMES)} or {TORCHVISION_PREFIX}<classifier>"
    lower = name.lower()
    # Of the same first letter: resnet18 is meant for resnet18_32x32, though nearer to liresnet.
    known = (lower,) if is_model_name(lower) else [n for n in MODEL_NAMES if n[:1] == lower[:1]]
    return choices + near_miss(lower, known)


def near_miss(name: str, known: Sequence[str], prefix: str = "") -> str:
    """A hint at the known name nearest to `name`, or nothing where none is near.

    Args:
        name: an unknown name.
        known: the names there are.
        prefix: what the hint puts before the name.

    Returns:
        " (did you mean '…'?)" or "".
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    return f" (did you mean {prefix + near[0]!r}?)" if near else ""
