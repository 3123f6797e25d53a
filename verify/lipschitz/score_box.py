"""Boxes around the score's derivative by the logits, and how long the logits' rows make it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.scores import score_of
from greg_cert.verify.bounds.interval import Interval
from greg_cert.verify.graph.ops import Linear
from greg_cert.verify.graph.rounding import sum_rounding
from greg_cert.verify.lipschitz.softmax_box import mixture_box, softmax_box
from greg_cert.verify.norms import dual_norm

_LARGEST_PAIRS = 64  # classes, up to which differences of all pairs are measured


@dataclass(frozen=True)
class ScoreBox:
    """−∂S/∂f over a region.

    Attributes:
        low: (B, K) lower bounds of it.
        high: (B, K) upper bounds.
        mixture: (low, high) of p (B, J), where −∇S = Σ_j p_j (w_j − shift·w) for probabilities p.
        shift: (K,) of that mixture.
        steepest: (B,) bound of s(1 − s) of the largest softmax probability s; None elsewhere.
    """

    low: Tensor
    high: Tensor
    mixture: Interval | None = None
    shift: Tensor | None = None
    steepest: Tensor | None = None

    def head_box(self, head: Linear) -> Interval:
        """Bounds (B, D) of the score's adjoint before a linear head (D features to K logits)."""
        weight = head.weight
        if self.mixture is not None:
            return mixture_box(*self.mixture, self._rows(weight))
        centre, spread = (self.low + self.high) / 2, (self.high - self.low) / 2
        largest = torch.maximum(self.low.abs(), self.high.abs())
        spread = spread + sum_rounding(head, backwards=True) * largest
        middle, width = centre @ weight, spread @ weight.abs()
        return middle - width, middle + width

    def longest(self, weight: Tensor, mask: Tensor, norm: float) -> Tensor:
        """Bound (B,) of the dual norm of ∇S before the head, its columns masked by (B, D).

        ∇S is a convex combination of rows, or of differences of rows, so the longest bounds it.
        """
        if self.mixture is not None:
            rows = self._rows(weight)
            return torch.stack([dual_norm(row * mask, norm) for row in rows]).amax(0)
        assert self.steepest is not None
        count = len(weight)
        if count <= _LARGEST_PAIRS:
            pairs = [(i, j) for i in range(count) for j in range(i)]
            lengths = [dual_norm((weight[i] - weight[j]) * mask, norm) for i, j in pairs]
            far = torch.stack(lengths).amax(0) if lengths else torch.zeros_like(mask[:, 0])
        else:
            far = 2 * torch.stack([dual_norm(row * mask, norm) for row in weight]).amax(0)
        return self.steepest * far

    def _rows(self, weight: Tensor) -> Tensor:
        """Rows (J, D) that the mixture is of."""
        assert self.mixture is not None
        rows = weight[: self.mixture[0].shape[1]]
        return rows if self.shift is None else rows - self.shift @ weight


def score_box(score: str, low: Tensor, high: Tensor) -> ScoreBox:
    """The box of −∂S/∂f where the logits lie in [low, high], (B, K) each."""
    kind = score_of(score)
    if kind.relative:
        return _max_softmax_box(low, high)
    classes = kind.classes(low.shape[1])
    p = (softmax_box if kind.soft else _winner_box)(low[:, :classes], high[:, :classes])
    if not kind.absent:
        return ScoreBox(*p, mixture=p)
    minus = -torch.ones_like(low[:, :1])
    shift = torch.zeros_like(low[0])
    shift[-1] = 1.0
    box = (torch.cat([p[0], minus], 1), torch.cat([p[1], minus], 1))
    return ScoreBox(*box, mixture=p, shift=shift)


def _winner_box(low: Tensor, high: Tensor) -> Interval:
    """Bounds of a one-hot (or, at ties, mixed) indicator of the largest logit."""
    possible = ~(high < low.amax(1, keepdim=True))  # NaN: everything is possible
    alone = possible & (possible.sum(1, keepdim=True) == 1)
    return alone.to(low.dtype), possible.to(low.dtype)


def _max_softmax_box(low: Tensor, high: Tensor) -> ScoreBox:
    """−S = s_k for the winner k, whose derivative by f_i is s_k(1[i = k] − s_i)."""
    least, most = softmax_box(low, high)
    alone, possible = (t.bool() for t in _winner_box(low, high))
    top = torch.where(possible, most, 0.0).amax(1, keepdim=True)
    # s(1 − s) is largest at 1/2 and otherwise at the end that is nearer to it.
    nearest = torch.minimum(torch.maximum(least, torch.full_like(least, 0.5)), most)
    peak = nearest * (1 - nearest)
    valley = torch.minimum(least * (1 - least), most * (1 - most)).clamp_min(0.0)
    lower = torch.where(alone, valley, -top * most)
    sure = torch.where(alone, least, 0.0).amax(1, keepdim=True)
    upper = torch.where(possible, peak, -sure * least)
    steepest = torch.where(possible, peak, 0.0).amax(1)
    return ScoreBox(lower, upper, steepest=steepest.nan_to_num(nan=0.25))
