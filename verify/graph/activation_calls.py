"""Torch's activations as translations into the canonical graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.verify.graph.calls import Call
from greg_cert.verify.graph.smooth import SOFTPLUS_THRESHOLD

ACTIVATION_LEAVES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Hardtanh,  # and ReLU6, which is one
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
)


def _bent(negative_slope: float) -> Callable[[Call], int]:
    return lambda c: c.builder.activation(c.name, c.operand(), negative_slope)


def _leaky_relu(c: Call) -> int:
    slope = float(c.attribute(1, "negative_slope", 0.01))
    if not math.isfinite(slope):
        raise c.refuse(f"its negative slope is {slope}")
    return c.builder.activation(c.name, c.operand(), slope)


def _prelu(c: Call) -> int:
    weight = c.attribute(1, "weight")
    if not isinstance(weight, Tensor) or weight.numel() not in (1, c.builder.shape(c.operand())[0]):
        raise c.refuse("it has neither one slope for all channels nor one for each")
    if not bool(weight.isfinite().all()):
        raise c.refuse("its slopes are not finite")
    slopes = weight.reshape(-1).expand(c.builder.shape(c.operand())[0])
    return c.builder.activation(c.name, c.operand(), slopes)


def _hardtanh(c: Call) -> int:
    return _clamped(c, c.attribute(1, "min_val", -1.0), c.attribute(2, "max_val", 1.0))


def _clamped(c: Call, *limits: Any) -> int:
    """Between two limits, each a number, a tensor of one, or None."""
    numbers = []
    for given, none in zip(limits, (-math.inf, math.inf), strict=True):
        if isinstance(given, Tensor) and given.numel() != 1:
            raise c.refuse("its limits are not one number each")
        numbers.append(none if given is None else float(given))
    low, high = numbers
    if not (low <= high and low < math.inf and high > -math.inf):  # nor NaN
        raise c.refuse(f"its limits are {low} and {high}")
    return c.builder.clamp(c.name, c.operand(), low, high)


def _smooth(kind: str) -> Callable[[Call], int]:
    return lambda c: c.builder.smooth(c.name, c.operand(), kind)


def _softplus(c: Call) -> int:
    beta = float(c.attribute(1, "beta", 1.0))
    threshold = float(c.attribute(2, "threshold", 20.0))
    if threshold != SOFTPLUS_THRESHOLD:
        raise c.refuse(f"its threshold is {threshold}, not {SOFTPLUS_THRESHOLD}")
    if not 1e-6 <= beta <= 1e6:
        raise c.refuse(f"its beta is {beta}, not in [1e-6, 1e6]")
    return c.builder.smooth(c.name, c.operand(), "softplus", beta)


def _gelu(c: Call) -> int:
    exact = c.attribute(1, "approximate", "none") == "none"
    return c.builder.smooth(c.name, c.operand(), "gelu" if exact else "gelu-tanh")


def _elu(c: Call) -> int:
    if (alpha := float(c.attribute(1, "alpha", 1.0))) != 1.0:
        raise c.refuse(f"its alpha is {alpha}, not 1")
    return c.builder.smooth(c.name, c.operand(), "elu")


ACTIVATION_HANDLERS: dict[Any, Callable[[Call], int]] = {
    **dict.fromkeys(
        (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _bent(0.0)
    ),
    **dict.fromkeys((nn.LeakyReLU, F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((nn.PReLU, F.prelu, torch.prelu, "prelu"), _prelu),
    **dict.fromkeys(
        (operator.abs, torch.abs, torch.abs_, torch.absolute, "abs", "abs_"), _bent(-1.0)
    ),
    **dict.fromkeys((nn.Hardtanh, F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys(
        (torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_"),
        lambda c: _clamped(c, c.argument(1, "min", None), c.argument(2, "max", None)),
    ),
    **dict.fromkeys(
        (torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"),
        lambda c: _clamped(c, c.argument(1, "min", None), None),
    ),
    **dict.fromkeys(
        (torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_"),
        lambda c: _clamped(c, None, c.argument(1, "max", None)),
    ),
    F.relu6: lambda c: _clamped(c, 0.0, 6.0),
    **dict.fromkeys(
        (nn.Sigmoid, torch.sigmoid, torch.sigmoid_, torch.special.expit, "sigmoid", "sigmoid_"),
        _smooth("sigmoid"),
    ),
    **dict.fromkeys((nn.Tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), _smooth("tanh")),
    **dict.fromkeys((nn.SiLU, F.silu), _smooth("silu")),
    **dict.fromkeys((nn.Softplus, F.softplus), _softplus),
    **dict.fromkeys((nn.GELU, F.gelu), _gelu),
    **dict.fromkeys((nn.ELU, F.elu, F.elu_), _elu),
}
