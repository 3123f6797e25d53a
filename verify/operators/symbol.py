"""The norm of a convolution by its symbol: that of the infinite one of which it is a part.

With zeros as padding, a convolution is the infinite one restricted to some inputs and outputs, so
‖W‖₂ ≤ sup_ω ‖Ŵ(ω)‖₂ with Ŵ(ω) = Σ_t W_t·e^{iω·t}. A stride s is none in polyphase form: tap
t = s·q + r reads pixel n + q of phase r, which makes s times the channels and taps q. Without a
stride dilation only renames ω.

A grid sees the supremum but for a factor. For any unit v, v*Ŵ*Ŵv is a real trigonometric polynomial
p of degree d, the number of taps less one, on either axis. Where |p| is largest, at ω₀ with
p(ω₀) = M, M. Riesz's lemma says p(ω) ≥ M·cos(d(ω − ω₀)) up to π/d from it, and of N equispaced
points one is within π/N: so M ≤ max over the grid / cos(πd/N) if N > 2d, axis by axis (Ehlich and
Zeller, "Schwankung von Polynomen zwischen Gitterpunkten", Math. Z. 86, 1964). Real weights have
Ŵ(−ω) conjugate to Ŵ(ω), so half of one axis is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv
from greg_cert.verify.operators.gram import LARGEST_GRAM, largest_eigenvalue
from greg_cert.verify.operators.layers import UNIT, distinct_groups

_BUDGET = 2e11  # operations
_FINENESS = (32, 24, 16, 12, 8, 6, 4, 3)  # grid points an axis and degree, the first that is paid
_ELEMENTS = 2**22  # of the matrices at a time


def symbol_norm(op: Conv) -> float:
    """‖W‖₂ of a layer with weights of size about 1, at most this; inf where none is affordable."""
    taps = polyphase(distinct_groups(op))  # (groups, O, C, q_h, q_w)
    grid = _grid(taps)
    return math.inf if grid is None else grid_norm(taps, grid)


def symbol_operations(op: Conv) -> float:
    """About how many operations `symbol_norm` takes."""
    taps = polyphase(distinct_groups(op))
    grid = _grid(taps)
    return 0.0 if grid is None else _each(taps) * (grid[0] // 2 + 1) * grid[1]


def _grid(taps: Tensor) -> tuple[int, int] | None:
    """The finest grid that is affordable, if any is."""
    degrees = (taps.shape[3] - 1, taps.shape[4] - 1)
    if min(taps.shape[1:3]) ** 2 > LARGEST_GRAM:
        return None
    for fineness in _FINENESS:
        grid = (max(1, fineness * degrees[0]), max(1, fineness * degrees[1]))
        if _each(taps) * (grid[0] // 2 + 1) * grid[1] <= _BUDGET or not any(degrees):
            return grid
    return None


def _each(taps: Tensor) -> float:
    """Operations at one point of a grid."""
    size, other = sorted(taps.shape[1:3])
    each = 2.0 * size**2 * other + size**3 / 3 + 80 * size**2
    return each * len(taps) * (4 if max(taps.shape[3:]) > 1 else 1)  # complex


def polyphase(op: Conv) -> Tensor:
    """Taps (groups, O, C, q_h, q_w) of one group each, its channels times the phases of strides."""
    weight: Tensor = op.weight.unflatten(0, (op.groups, -1))
    for axis, stride, dilation in zip((3, 4), op.stride, op.dilation, strict=True):
        weight = _phases(weight, axis, stride, dilation)
    return weight


def _phases(weight: Tensor, axis: int, stride: int, dilation: int) -> Tensor:
    if stride == 1:
        return weight
    count = weight.shape[axis]
    width = math.ceil((dilation * (count - 1) + 1) / stride)
    shape = list(weight.shape)
    shape[axis] = width * stride
    spread = weight.new_zeros(shape)
    places = dilation * torch.arange(count, device=weight.device)
    spread.index_copy_(axis, places, weight)
    phases: Tensor = spread.unflatten(axis, (width, stride)).movedim(axis + 1, 3)
    return phases.flatten(2, 3)  # beside the channels


def grid_factor(degrees: Sequence[int], grid: Sequence[int]) -> float:
    """How far sup ‖Ŵ‖ may be above the largest value on the grid; needs N > 2d on each axis."""
    cosines = [math.cos(math.pi * d / n) for d, n in zip(degrees, grid, strict=True)]
    return (1 + 8 * UNIT) / math.sqrt(math.prod(cosines))


def grid_norm(taps: Tensor, grid: Sequence[int]) -> float:
    """Bound of sup_ω ‖Ŵ(ω)‖₂ of taps (groups, O, C, q_h, q_w) by a grid of points an axis."""
    groups, outputs, inputs, *kernel = taps.shape
    degrees = tuple(k - 1 for k in kernel)
    first = torch.arange(grid[0] // 2 + 1, device=taps.device)
    points = torch.cartesian_prod(first, torch.arange(grid[1], device=taps.device))
    flat = taps.permute(3, 4, 0, 1, 2).flatten(0, 1).flatten(1)  # (Q, groups·O·C)
    absolute = taps.abs().sum((3, 4))
    largest = (absolute.sum(2).amax() * absolute.sum(1).amax()).sqrt()
    coarse = float(largest) * (1 + 4 * (taps.numel() + 4) * UNIT)
    terms, sums = math.prod(kernel) + 40, max(1, min(outputs, inputs))
    lost = 4 * terms * UNIT * coarse  # of the symbol itself
    error = 4 * (max(outputs, inputs) + 2) * UNIT * (coarse + lost) ** 2  # of its Gram matrix
    best = 0.0
    for part in points.split(max(1, _ELEMENTS // (groups * max(outputs * inputs, sums**2)))):
        symbol = (_waves(part, kernel, grid) @ flat.to(torch.complex128)) if any(degrees) else flat
        symbol = symbol.reshape(-1, outputs, inputs)
        gram = symbol @ symbol.mH if outputs <= inputs else symbol.mH @ symbol
        best = max(best, largest_eigenvalue(gram, error))
    return (math.sqrt(best) * (1 + 2 * UNIT) + lost) * grid_factor(degrees, grid)


def _waves(points: Tensor, kernel: Sequence[int], grid: Sequence[int]) -> Tensor:
    """e^{iω·q} (P, Q) at grid points (P, 2), for the taps q of a kernel."""
    axes = []
    for axis, (taps, count) in enumerate(zip(kernel, grid, strict=True)):
        turns = points[:, axis, None] * torch.arange(taps, device=points.device) % count
        angle = 2 * math.pi * turns.double() / count
        axes.append(torch.complex(angle.cos(), angle.sin()))
    return (axes[0].unsqueeze(2) * axes[1].unsqueeze(1)).flatten(1)
