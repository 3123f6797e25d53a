"""Max pools whose windows overlap or reach over the border, as one operation of the graph.

Members of a window that lie in the padding do not exist: torch pads with −∞. A pool of kernel =
stride without padding is a tree of ReLU instead (`greg_cert.verify.graph.build`), which splits
take.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MaxPool:
    """Largest member of each window, a channel at a time, as `torch.nn.MaxPool2d` has it."""

    input_shape: tuple[int, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Values (B, C, H′, W′) at x (B, *input_shape)."""
        return F.max_pool2d(
            x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """(C, H′, W′)."""
        return tuple(self.apply(torch.empty(1, *self.input_shape, device="meta")).shape[1:])

    @property
    def size(self) -> int:
        """Members of a window, those in the padding included."""
        return self.kernel[0] * self.kernel[1]

    def members(self, x: Tensor, outside: float) -> Tensor:
        """What windows see of x (…, H, W), (…, k, H′, W′); `outside` stands for the padding."""
        (top, left), (bottom, right) = self.padding, self._beyond
        padded = F.pad(x, (left, right, top, bottom), value=outside)
        return torch.stack([padded[..., rows, columns] for rows, columns in self._taps], -3)

    def spread(self, parts: Iterable[Tensor]) -> Tensor:
        """Transpose of `members`: k tensors (…, H′, W′), added up where they were read."""
        (top, left), (bottom, right) = self.padding, self._beyond
        height, width = self.input_shape[1:]
        total: Tensor | None = None
        for part, (rows, columns) in zip(parts, self._taps, strict=True):
            if total is None:
                shape = (top + height + bottom, left + width + right)
                total = part.new_zeros(*part.shape[:-2], *shape)
            total[..., rows, columns] += part
        assert total is not None
        return total[..., top : top + height, left : left + width]

    @cached_property
    def real(self) -> Tensor:
        """Which members exist, (k, H′, W′)."""
        return self.members(torch.zeros(self.input_shape[1:], device="cpu"), -1.0) == 0.0

    @cached_property
    def overlap(self) -> int:
        """The most windows that one pixel is in."""
        return int(self.spread(self.real.double()).amax())

    def lipschitz(self, norm: float) -> float:
        """Its Lipschitz constant from ℓ_norm to ℓ_norm, at most this, for 2 and inf.

        Σ_o (max Δ)² ≤ Σ_o Σ_{j in o} Δ_j² ≤ overlap·ΣΔ², and no output moves more than a member.
        """
        return 1.0 if norm == math.inf else math.sqrt(self.overlap)

    @property
    def _beyond(self) -> tuple[int, int]:
        """Rows and columns below and to the right of the image that windows reach into."""
        axes = zip(
            self.output_shape[1:], self.stride, self.dilation, self.kernel, self.padding,
            self.input_shape[1:], strict=True,
        )  # fmt: skip
        beyond = [(n - 1) * s + d * (k - 1) + 1 - p - size for n, s, d, k, p, size in axes]
        return max(0, beyond[0]), max(0, beyond[1])

    @property
    def _taps(self) -> list[tuple[slice, slice]]:
        """For each place in the kernel the rows and columns of the padded image that it reads."""
        axes = [
            [slice(d * t, d * t + s * (n - 1) + 1, s) for t in range(k)]
            for n, s, d, k in zip(
                self.output_shape[1:], self.stride, self.dilation, self.kernel, strict=True
            )
        ]
        return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def windows_of(op: MaxPool, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the members of all windows, (B, C, k, H′, W′); −∞ for those that do not exist."""
    return op.members(low, -math.inf), op.members(high, -math.inf)


def share_range(op: MaxPool, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of each member's share in the derivative, (B, C, k, H′, W′): {0}, {1} or [0, 1].

    The pool reads a box, (B, *input_shape) each end.
    """
    below, above = windows_of(op, low, high)
    # A member takes part unless another one is surely larger, and alone it takes all. Bounds that
    # are NaN fail every comparison and leave [0, 1].
    largest, second = above.topk(2, -3).values.unbind(-3)
    others = torch.where(
        above == largest.unsqueeze(-3), second.unsqueeze(-3), largest.unsqueeze(-3)
    )
    least = (below > others).to(low.dtype)
    return least, 1.0 - (above < below.amax(-3, keepdim=True)).to(low.dtype)
