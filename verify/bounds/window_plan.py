"""Where the windows lie that neurons of a convolution see, in every node before it.

The coefficients of a neuron at (y, x) are zero outside a rectangle that begins at
step·(y, x) + first, whose size is the same for all neurons of a node. Where windows grow to the
size of the map, or an operation is not local, rows go on as whole maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.verify.graph.ops import Activation, Add, Concat, Conv, Graph, Input, Smooth

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
    """How windows of the neurons of one node, of shape (C, H, W), lie in the nodes before it."""

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
