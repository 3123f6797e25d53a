"""CROWN's backward pass for single neurons of a convolution: only the window that each one sees.

A pass that keeps nothing else costs what the window holds, however large the image is. Where
windows end (`window_plan`), rows go on as whole maps (`crown.backward_rows`).
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.bounds.crown import RelaxedNetwork, backward_rows
from greg_cert.verify.bounds.linear_bound import ROUNDING, value_at_centre
from greg_cert.verify.bounds.region import Region
from greg_cert.verify.bounds.window_plan import Frame, WindowPlan
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Computed,
    Concat,
    Conv,
    Flatten,
    Linear,
    Smooth,
)
from greg_cert.verify.norms import dual_norm


class WindowPass:
    """Bounds of neurons of one node over one region, by windows.

    Args:
        plan: of the node.
        network: with boxes of all activations before it.
        region: where the bounds hold; one with a cut in ℓ2 only.
    """

    def __init__(self, plan: WindowPlan, network: RelaxedNetwork, region: Region) -> None:
        self._plan, self._network, self._region = plan, network, region
        self._terms = network.terms
        self._spread: dict[tuple[int, str], Tensor] = {}

    def lowest(self, indices: Tensor) -> Tensor:
        """Lower bounds (B, 2R) of neurons (B or 1, R) and of their negatives."""
        walk = self._walked(indices)
        return self._of_whole_maps(walk) if walk.whole else self._at_input(walk)

    def lengths(self, indices: Tensor) -> Tensor:
        """Dual norms (1, R) of the slopes of neurons (1, R) with no activation before them."""
        walk = self._walked(indices)
        if walk.whole:
            slope = self._slope_of_whole_maps(walk)[0].flatten(0, 1)
        else:
            slope = self._windows_at_input(walk).flatten(0, 2)
        return dual_norm(slope, self._region.norm)[: indices.numel()].unsqueeze(0)

    def _walked(self, indices: Tensor) -> _Walk:
        """The rows of neurons and of their negatives, carried to the input or as far as windows."""
        plan, start = self._plan, self._plan.target
        area = math.prod(plan.plane)
        channels = indices // area
        rows, added = plan.rows[channels], plan.bias[channels]
        offset = torch.stack([added, -added], 1)
        walk = _Walk(plan, indices % area, offset, offset.abs())
        if start in plan.layers:
            if self._terms is not None:
                own = self._terms[start].flatten(1)
                own = own.gather(1, indices.expand(len(own), -1))
                walk.size = own.unsqueeze(1)
            (below,) = plan.graph.nodes[start].inputs
            walk.give(below, torch.stack([rows, -rows], 1), plan.first, dirty=True)
        else:
            walk.give(start, torch.stack([rows, -rows], 1), plan.first)
        for i, node in reversed(plan.graph.computed):
            if i in walk.values:
                self._step(walk, i, node)
        return walk

    def _step(self, walk: _Walk, i: int, node: Computed) -> None:
        """Replace the coefficients of node i by those of its operands."""
        values, frame = walk.values.pop(i), self._plan.frames[i]
        assert frame is not None
        match node.op:
            case Conv():
                layer = self._plan.layers[i]
                if i in walk.dirty:
                    values = values * self._seen(walk, i, "inside")
                bias = layer.bias.repeat_interleave(math.prod(frame.size))  # of each pixel
                walk.offset = walk.offset + values @ bias
                if self._terms is not None:
                    walk.size = walk.size + _dot(values.abs(), self._seen(walk, i, "terms"))
                back = layer.adjoint(values.reshape(-1, len(layer.bias), *frame.size))
                back = back.reshape(*values.shape[:3], -1)
                walk.give(node.inputs[0], back, frame.below(node.op), dirty=True)
            case Activation():
                lower, gap, intercept = self._seen(walk, i, "lines").chunk(3, dim=-1)
                # As in `backward_rows`; lines are zero outside the map.
                negative = values.clamp(max=0.0)
                step = _dot(negative, intercept)
                walk.offset, walk.size = walk.offset + step, walk.size - step
                back = (values * lower).addcmul_(negative, gap)
                walk.give(node.inputs[0], back, frame)
            case Smooth():
                seen = self._seen(walk, i, "lines").chunk(4, dim=-1)
                slope_low, intercept_low, slope_high, intercept_high = seen
                positive, negative = values.clamp(min=0.0), values.clamp(max=0.0)
                for part, intercept in ((positive, intercept_low), (negative, intercept_high)):
                    walk.offset = walk.offset + _dot(part, intercept)
                    walk.size = walk.size + _dot(part.abs(), intercept.abs())
                back = (positive * slope_low).addcmul_(negative, slope_high)
                walk.give(node.inputs[0], back, frame)
            case Add():
                for j in node.inputs:
                    walk.give(j, values, frame, dirty=i in walk.dirty)
            case Concat():
                area = math.prod(frame.size)
                counts = [self._plan.graph.nodes[j].shape[0] * area for j in node.inputs]
                for j, part in zip(node.inputs, values.split(counts, dim=-1), strict=True):
                    walk.give(j, part, frame, dirty=i in walk.dirty)
            case Linear() | MaxPool() | Flatten():
                raise AssertionError(f"no windows in {node.op}")
            case _:
                assert_never(node.op)

    def _windows_at_input(self, walk: _Walk) -> Tensor:
        values = walk.values[0]
        return values * self._seen(walk, 0, "inside") if 0 in walk.dirty else values

    def _at_input(self, walk: _Walk) -> Tensor:
        """The bounds, from the windows of the input."""
        region, values = self._region, self._windows_at_input(walk)
        value = walk.offset + _dot(values, x := self._seen(walk, 0, "input"))
        if x.dtype == torch.float64:
            scale = _dot(values.abs(), x.abs()) + walk.size
            value = value - ROUNDING * torch.finfo(x.dtype).eps * scale
        length = dual_norm(values.flatten(0, 2), region.norm).reshape(values.shape[:3]).flatten(1)
        along = None
        if region.cut is not None:
            tiny = torch.finfo(x.dtype).tiny
            along = _dot(values, self._seen(walk, 0, "normal")).flatten(1) / length.clamp_min(tiny)
        return region.lowest_by_cosine(value.flatten(1), length, along)

    def _of_whole_maps(self, walk: _Walk) -> Tensor:
        """The bounds, from a pass over whole maps where windows ended."""
        slope, offset, size = self._slope_of_whole_maps(walk)
        offset = offset + walk.offset.flatten(1)
        size = size + walk.size.expand_as(walk.offset).flatten(1)
        return self._region.lowest(value_at_centre(slope, offset, size, self._region.inputs), slope)

    def _slope_of_whole_maps(self, walk: _Walk) -> tuple[Tensor, Tensor, Tensor]:
        """As `backward_rows` gives it."""
        batch = max(len(rows) for rows in walk.whole.values())
        more = {i: rows.expand(batch, *rows.shape[1:]) for i, rows in walk.whole.items()}
        start = max(more)
        rows = more.pop(start)
        return backward_rows(self._network, start, rows, more)

    def _seen(self, walk: _Walk, i: int, name: str) -> Tensor:
        """What each window shows of maps of node i: (B or 1, 1, R, ·)."""
        frame = self._plan.frames[i]
        assert frame is not None
        if (i, name) not in self._spread:
            maps = self._maps(i, name)
            self._spread[i, name] = frame.spread(maps, self._plan.plane)
        spread = self._spread[i, name]
        # Samples whose windows are the same share one entry of the batch.
        own = torch.arange(len(spread), device=spread.device).unsqueeze(1)
        width = self._plan.plane[1]
        if spread.ndim == 3:
            pixels = walk.places + own * spread.shape[1]
            found = spread.flatten(0, 1).index_select(0, pixels.flatten())
        else:
            found = spread[own, walk.places // width, walk.places % width]
        batch = max(len(spread), len(walk.places))
        return found.reshape(batch, 1, walk.places.shape[1], -1)

    def _maps(self, i: int, name: str) -> Tensor:
        region, node = self._region, self._plan.graph.nodes[i]
        match name:
            case "inside":
                return region.inputs.new_ones(1, *node.shape)
            case "terms":
                assert self._terms is not None
                return self._terms[i]
            case "input":
                return region.inputs
            case "normal":
                assert region.cut is not None
                return region.cut.normal.reshape(region.inputs.shape)
        found = self._network.lines_of(i)
        if isinstance(node.op, Activation):
            slope_low, slope_high, intercept = found
            found = slope_low, slope_high - slope_low, intercept
        return torch.cat(found, 1)


class _Walk:
    """Where one pass stands: coefficients (B or 1, 2, R, values of a window) of some nodes."""

    def __init__(self, plan: WindowPlan, places: Tensor, offset: Tensor, size: Tensor) -> None:
        self._plan, self.places, self.offset, self.size = plan, places, offset, size
        self.values: dict[int, Tensor] = {}
        self.dirty: set[int] = set()  # nodes whose windows hold values outside the map
        self.whole: dict[int, Tensor] = {}  # (B or 1, 2R, C, H, W), where windows ended

    def give(self, i: int, values: Tensor, frame: Frame, *, dirty: bool = False) -> None:
        """Add coefficients to those of node i."""
        plan, planned = self._plan, self._plan.frames[i]
        shape = plan.graph.nodes[i].shape
        if planned is None:
            whole = self._placed(values, frame, shape)
            self.whole[i] = self.whole[i] + whole if i in self.whole else whole
            return
        if planned != frame:
            maps = values.reshape(-1, shape[0], *frame.size)
            top, left = (f - g for f, g in zip(frame.first, planned.first, strict=True))
            bottom, right = (
                m - n - t for m, n, t in zip(planned.size, frame.size, (top, left), strict=True)
            )
            values = F.pad(maps, (left, right, top, bottom)).reshape(*values.shape[:3], -1)
        self.values[i] = self.values[i] + values if i in self.values else values
        if dirty and max(frame.outside(plan.plane, shape[1:])) > 0:
            self.dirty.add(i)

    def _placed(self, values: Tensor, frame: Frame, shape: tuple[int, ...]) -> Tensor:
        """Windows as whole maps, (B or 1, 2R, *shape)."""
        left, right, top, bottom = (max(n, 0) for n in frame.outside(self._plan.plane, shape[1:]))
        height, width = shape[1] + top + bottom, shape[2] + left + right
        device = values.device
        y = (self.places // self._plan.plane[1]) * frame.step[0] + frame.first[0] + top
        x = (self.places % self._plan.plane[1]) * frame.step[1] + frame.first[1] + left
        rows = y.unsqueeze(-1) + torch.arange(frame.size[0], device=device)
        columns = x.unsqueeze(-1) + torch.arange(frame.size[1], device=device)
        pixels = (rows.unsqueeze(-1) * width + columns.unsqueeze(-2)).flatten(2)
        maps = values.unflatten(3, (shape[0], -1))
        pixels = pixels.unsqueeze(1).unsqueeze(3).expand(*maps.shape)
        placed = values.new_zeros(*maps.shape[:4], height * width).scatter_(4, pixels, maps)
        placed = placed.reshape(len(placed), -1, shape[0], height, width)
        return placed[..., top : top + shape[1], left : left + shape[2]]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner products along the last axis."""
    return (one * other).sum(-1)
