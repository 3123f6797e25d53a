"""The two norms radii are measured in, their duals, and projections onto their balls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from greg_cert.errors import UsageError


def check_norm(norm: float) -> float:
    """2.0 or inf as given, else `UsageError`."""
    if norm not in (2.0, math.inf):
        raise UsageError(f"expected norm 2 or inf, but got {norm!r}")
    return float(norm)


def check_radius(name: str, radius: float) -> float:
    """A finite positive radius as given, else `UsageError`."""
    if not (math.isfinite(radius) and radius > 0):
        raise UsageError(f"expected {name} > 0 and finite, but got {radius}")
    return float(radius)


def vector_norm(v: Tensor, norm: float) -> Tensor:
    """Norm of each sample, (B, ...) -> (B,); squares neither overflow nor underflow."""
    flat = v.flatten(1)
    if norm != 2.0:
        length: Tensor = torch.linalg.vector_norm(flat, ord=norm, dim=1)
        return length
    largest = flat.detach().abs().amax(1).clamp_min(torch.finfo(v.dtype).tiny)
    scaled: Tensor = torch.linalg.vector_norm(flat / largest.unsqueeze(1), dim=1)
    return scaled * largest


def dual_norm(v: Tensor, norm: float) -> Tensor:
    """Dual of `norm` of each sample, (B, ...) -> (B,): ℓ2 for 2, ℓ1 for inf."""
    return vector_norm(v, 2.0 if norm == 2.0 else 1.0)


def steepest_direction(gradient: Tensor, norm: float) -> Tensor:
    """Unit-norm step (B, ...) along which a linear function of slope `gradient` grows most."""
    if norm == math.inf:
        return gradient.sign()
    length = vector_norm(gradient, 2.0).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / per_sample(length, gradient)


def project(delta: Tensor, radius: Tensor, norm: float) -> Tensor:
    """Nearest point to `delta` (B, ...) in the ball of per-sample `radius` (B,) about zero."""
    r = per_sample(radius, delta)
    if norm == math.inf:
        return delta.clamp(-r, r)
    length = per_sample(vector_norm(delta, 2.0), delta)
    return delta * (r / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp(max=1.0)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to broadcast against (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
