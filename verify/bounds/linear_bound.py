"""What a linear bound is worth at the centre of its ball, and how steep it is."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.norms import dual_norm

ROUNDING = 2.0**13  # units in the last place, of the sum of absolute terms


def value_at_centre(slope: Tensor, offset: Tensor, size: Tensor, inputs: Tensor) -> Tensor:
    """Lower bound (B, R) of slope·x + offset at each input, allowing for rounding in float64.

    Where large terms cancel, the rounding is large beside what is left of them; so it is measured
    by the sum of their absolute values, not by the result.

    Args:
        slope: (B, R, ...), or (1, R, ...) where all samples share it.
        offset: (B, R) or (1, R).
        size: sum of the absolute terms of the offset, of its shape.
        inputs: (B, ...).
    """
    flat, x = slope.flatten(2), inputs.flatten(1)
    shared = len(flat) == 1
    value = x @ flat[0].T if shared else (flat @ x.unsqueeze(2)).squeeze(2)
    if x.dtype != torch.float64:
        # float32 only guides a search, which an allowance of its size would mislead.
        return value + offset
    return value + offset - rounding_at_centre(slope, size, inputs)


def rounding_at_centre(slope: Tensor, size: Tensor, inputs: Tensor) -> Tensor:
    """What a linear bound and its value at the centre may be off by in float64, (B, R).

    Of arguments as those of `value_at_centre`.
    """
    flat, x = slope.detach().flatten(2).abs(), inputs.flatten(1).abs()
    scale = x @ flat[0].T if len(flat) == 1 else (flat @ x.unsqueeze(2)).squeeze(2)
    return ROUNDING * torch.finfo(x.dtype).eps * (scale + size)


def slope_norms(slope: Tensor, norm: float) -> Tensor:
    """Dual norms (B, R) of slopes (B, R, ...)."""
    return dual_norm(slope.flatten(0, 1), norm).reshape(slope.shape[:2])
