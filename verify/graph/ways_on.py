"""What to do about layers that networks from elsewhere often have and that nobody bounds here."""

from __future__ import annotations

_GATE = "leave out the gate (squeeze-and-excitation), or use a network without, such as a ResNet"
_NORM = "use BatchNorm2d there, whose statistics are fixed in evaluation"
_SMOOTH = "use SiLU in its place, and no squeeze-and-excitation"
_SHUFFLE = "mix channels by a 1x1 convolution instead of moving them"
_ATTENTION = "use a convolutional network: attention is not bounded here"

_WAYS = {
    "AdaptiveAvgPool2d": "use AdaptiveAvgPool2d(1), or images whose feature maps it divides",
    "adaptive_avg_pool2d": "pool to one pixel, or use images whose feature maps it divides",
    "AdaptiveMaxPool2d": "use MaxPool2d with a kernel, or AdaptiveAvgPool2d(1)",
    "AvgPool2d": "leave ceil_mode off and count_include_pad on, or pad by a layer of its own",
    "Mish": "use SiLU or GELU in its place",
    "Hardswish": _SMOOTH,
    "hardswish": _SMOOTH,
    "Hardsigmoid": "use Sigmoid in its place",
    "LayerNorm": _NORM,
    "LayerNorm2d": _NORM,
    "layer_norm": _NORM,
    "GroupNorm": _NORM,
    "InstanceNorm2d": _NORM,
    "BatchNorm2d": "train it with track_running_stats=True",
    "mul": _GATE,
    "Softmax": _ATTENTION,
    "softmax": _ATTENTION,
    "MultiheadAttention": _ATTENTION,
    "scaled_dot_product_attention": _ATTENTION,
    "Conv2d": "use padding_mode='zeros' and a symmetric padding",
    "Conv1d": "use Conv2d with a kernel of 1 on one axis",
    "transpose": _SHUFFLE,
    "view": _SHUFFLE,
    "reshape": _SHUFFLE,
    "permute": "keep channels first; where that is for LayerNorm, use BatchNorm2d",
}


def way_on(kind: str) -> str:
    """What could stand in place of a layer or function of that name, and what is left anyway."""
    change = _WAYS.get(kind)
    start = "" if change is None else f"{change}; or else "
    return f"{start}take the method smoothing, which needs no bounds of layers"
