"""CROWN's backward pass for single neurons of a convolution: only the window that each one sees.

The coefficients of a neuron at (y, x) are zero outside a rectangle that begins at
step·(y, x) + first, whose size is the same for all neurons of a node. A pass that keeps nothing
else costs what the window holds, however large the image is. Where windows grow to the size of the
map, or an operation is not local, rows go on as whole maps (`crown.backward_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.bounds.crown import Lines, backward_rows, lines_of
from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.bounds.linear_bound import ROUNDING, value_at_centre
from greg_cert.verify.bounds.region import Region
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Graph,
    Input,
    Linear,
    Smooth,
)
from greg_cert.verify.norms import dual_norm

_SPREAD = 2**22  # elements of all windows of a map that are written out
_SMALL = 2**11  # values of a map whose rows cost as little
_LARGEST = 0.6  # of a map: larger windows cost as much


@dataclass(frozen=True)
class Frame:
    """Where windows lie in a node: pixels step·y + first to step·y + first + size, on both axes."""

    step: tuple[int, int] = (1, 1)
    first: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (1, 1)

    def below(self, op: Conv) -> Frame:
        """What the same windows see of the input of a convolution."""
        axes = zip(
            self.step, self.first, self.size, op.stride, op.padding, op.dilation,
            op.weight.shape[2:], strict=True,
        )  # fmt: skip
        found = [(t * s, f * s - p, (n - 1) * s + d * (k - 1) + 1) for t, f, n, s, p, d, k in axes]
        step, first, size = ((one, other) for one, other in zip(*found, strict=True))
        return Frame(step, first, size)

    def with_(self, other: Frame) -> Frame | None:
        """The smallest that holds both; None where they move at different steps."""
        if self.step != other.step:
            return None
        ends = [
            (min(f, g), max(f + n, g + m))
            for f, n, g, m in zip(self.first, self.size, other.first, other.size, strict=True)
        ]
        (top, bottom), (left, right) = ends
        return Frame(self.step, (top, left), (bottom - top, right - left))

    def outside(self, plane: tuple[int, ...], image: tuple[int, ...]) -> tuple[int, int, int, int]:
        """How far windows of a plane of neurons pass the image: left, right, top, bottom."""
        (top, bottom), (left, right) = (
            (-f, t * (p - 1) + f + n - m)
            for t, f, n, p, m in zip(self.step, self.first, self.size, plane, image, strict=True)
        )
        return left, right, top, bottom

    def spread(self, maps: Tensor, plane: tuple[int, ...]) -> Tensor:
        """All windows of maps (B, C, H, W), zero outside: (B, pixels of the plane, C·h·w).

        Where that would be large it is a view (B, rows, columns, C, h, w) of the maps.
        """
        padded = F.pad(maps, self.outside(plane, tuple(maps.shape[2:])))
        windows = padded.unfold(2, self.size[0], self.step[0]).unfold(3, self.size[1], self.step[1])
        windows = windows.permute(0, 2, 3, 1, 4, 5)
        return windows if windows.numel() > _SPREAD else windows.flatten(3).flatten(1, 2)


class WindowPlan:
    """How windows of one node's neurons lie in the nodes before it.

    Args:
        graph: the network.
        target: a node of shape (C, H, W).
    """

    def __init__(self, graph: Graph, target: int) -> None:
        self.graph, self.target = graph, target
        self.plane = graph.nodes[target].shape[1:]
        self.frames: dict[int, Frame | None] = {target: Frame()}  # None: whole maps
        self.layers: dict[int, Conv] = {}  # convolutions as they act on a window
        for i in range(target, -1, -1):
            if i not in self.frames:
                continue
            frame, node = self._fitting(i), graph.nodes[i]
            self.frames[i] = frame
            if frame is not None and isinstance(node.op, Conv):
                below = frame.below(node.op)
                shape = (graph.nodes[node.inputs[0]].shape[0], *below.size)
                self.layers[i] = replace(node.op, input_shape=shape, padding=(0, 0))
                frame = below
            for j in node.inputs:
                joined = self.frames.get(j, frame)
                if joined is not None and frame is not None:
                    joined = joined.with_(frame)
                self.frames[j] = None if frame is None else joined
        self.elements = max(self._elements(i) for i in self.frames)
        self.rows, self.bias, self.first = self._first()

    @classmethod
    def of(cls, graph: Graph, target: int) -> WindowPlan | None:
        """The plan; None where whole maps are small, or no window is smaller than its map."""
        widest = max(math.prod(node.shape) for node in graph.nodes[: target + 1])
        if len(graph.nodes[target].shape) != 3 or widest <= _SMALL:
            return None
        plan = cls(graph, target)
        below = graph.nodes[target].inputs
        return None if any(plan.frames[i] is None for i in below) else plan

    def _fitting(self, i: int) -> Frame | None:
        """The frame of a node, None where it had better be whole."""
        frame, node = self.frames[i], self.graph.nodes[i]
        if frame is None or not isinstance(
            node.op, Input | Conv | Activation | Smooth | Add | Concat
        ):
            return None
        if i != self.target and math.prod(frame.size) > _LARGEST * math.prod(node.shape[1:]):
            return None
        return frame

    def _elements(self, i: int) -> int:
        frame, shape = self.frames[i], self.graph.nodes[i].shape
        return math.prod(shape) if frame is None else shape[0] * math.prod(frame.size)

    def _first(self) -> tuple[Tensor, Tensor, Frame]:
        """Rows (C, ·) of the target's channels that a pass begins with, and what they add (C,).

        A convolution is stepped over: these are its kernels.
        """
        graph = self.graph
        count = graph.nodes[self.target].shape[0]
        eye = torch.eye(count, dtype=graph.dtype, device=graph.device)
        layer, op = self.layers.get(self.target), graph.nodes[self.target].op
        if layer is None or not isinstance(op, Conv):
            return eye, torch.zeros_like(eye[0]), Frame()
        kernels = layer.adjoint(eye.reshape(count, count, 1, 1)).flatten(1)
        return kernels, layer.bias, Frame().below(op)


class WindowPass:
    """Bounds of neurons of one node over one region, by windows.

    Args:
        plan: of the node.
        known: for each activation node before it its input's (lower, upper).
        lines: a store of lines, as in `backward_rows`.
        terms: absolute terms, as in `backward_rows`.
        region: where the bounds hold; one with a cut in ℓ2 only.
    """

    def __init__(
        self,
        plan: WindowPlan,
        known: Mapping[int, Interval],
        lines: dict[int, Lines],
        terms: Mapping[int, Tensor] | None,
        region: Region,
    ) -> None:
        self._plan, self._known, self._lines = plan, known, lines
        self._terms, self._region = terms, region
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
        for i in range(start, 0, -1):
            if i in walk.values:
                self._step(walk, i)
        return walk

    def _step(self, walk: _Walk, i: int) -> None:
        """Replace the coefficients of node i by those of its operands."""
        values, node, frame = walk.values.pop(i), self._plan.graph.nodes[i], self._plan.frames[i]
        assert frame is not None
        match node.op:
            case Conv():
                layer = self._plan.layers[i]
                if i in walk.dirty:
                    values = values * self._seen(walk, i, "inside")
                walk.offset = walk.offset + values @ _each_pixel(layer.bias, frame)
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
            case Input() | Linear() | MaxPool() | Flatten():
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
        return backward_rows(
            self._plan.graph, self._known, start, rows, self._terms, more=more, lines=self._lines
        )

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
        assert isinstance(node.op, Activation | Smooth)
        found = lines_of(i, node.op, *self._known[i], self._lines)
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
        canvas = values.new_zeros(*maps.shape[:4], height * width).scatter_(4, pixels, maps)
        canvas = canvas.reshape(len(canvas), -1, shape[0], height, width)
        return canvas[..., top : top + shape[1], left : left + shape[2]]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner products along the last axis."""
    return (one * other).sum(-1)


def _each_pixel(channels: Tensor, frame: Frame) -> Tensor:
    """(C,) repeated for every pixel of a window, (C·h·w,)."""
    return channels.repeat_interleave(math.prod(frame.size))
