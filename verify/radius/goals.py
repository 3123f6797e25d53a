"""What a decision comes down to: log-sum-exps, or maxima, that stay above or below a level.

Every score here is a log-sum-exp, or a maximum, of shifted logits z_j = f_j − s·f, or follows from
one. For S ≤ γ (side `id`) and S > γ (side `ood`):

* energy −logsumexp f: logsumexp f ≥ −γ; below −γ.
* max logit −max f: max f ≥ −γ; below −γ.
* absent class f_K − logsumexp f_{<K}: logsumexp(f_{<K} − f_K) ≥ −γ; below −γ.
* max softmax −max softmax f: with τ = −γ, logsumexp(f − f_k) ≤ −log τ for some class k, for which
  the predicted one is taken; logsumexp(f − f_k) > −log τ for all classes k.
* correct class y: max_{j≠y} (f_j − f_y) below 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.scores import score_of
from greg_cert.verify.scorer import Margin

SLACK = 1e-9  # of a margin, relative to the numbers it is the difference of


@dataclass(frozen=True)
class Goal:
    """For all g: the log-sum-exp, or maximum, over j of f_j − shift_g·f keeps to a side of a level.

    Attributes:
        above: whether it has to stay at or above the level, or else below it.
        soft: log-sum-exp, or else maximum.
        shift: (B, G, K).
        members: (B, G, K) bool, which j there are.
        level: (B,) may be infinite, where the goal always or never holds.
    """

    above: bool
    soft: bool
    shift: Tensor
    members: Tensor
    level: Tensor

    @property
    def one_row(self) -> bool:
        """Whether any one row of the logits that stays above its level is enough."""
        return self.above and self.shift.shape[1] == 1

    def of(self, samples: Tensor) -> Goal:
        """The goal for some samples."""
        shift, members, level = (t[samples] for t in (self.shift, self.members, self.level))
        return Goal(self.above, self.soft, shift, members, level)

    def to(self, dtype: torch.dtype) -> Goal:
        """The goal in another floating type."""
        return Goal(self.above, self.soft, self.shift.to(dtype), self.members, self.level.to(dtype))

    def shifted(self, logits: Tensor) -> Tensor:
        """Z (B, G, K) at logits (B, K), −inf where there is no such j."""
        along = (self.shift * logits.unsqueeze(1)).sum(2, keepdim=True)
        return torch.where(self.members, logits.unsqueeze(1) - along, -math.inf)

    def value(self, logits: Tensor) -> Tensor:
        """The log-sum-exps, or maxima, (B, G)."""
        z = self.shifted(logits)
        return z.logsumexp(2) if self.soft else z.amax(2)

    def rows(self, weights: Tensor) -> Tensor:
        """Rows (B, R, K) of the logits that weights (B, R, K) of z amount to; G = 1 or R = G."""
        return weights - weights.sum(2, keepdim=True) * self.shift


def decision_goal(score: str, margin: Margin, logits: Tensor) -> Goal:
    """The goal that holds only where the decision does not change.

    Args:
        score: one of `greg_cert.scores.SCORES`.
        margin: γ, and the side to stay on.
        logits: (B, K) at the centres; the predicted class is taken from them.
    """
    count, classes = logits.shape
    kind = score_of(score)
    if kind.absent and classes < 2:
        raise UsageError(f"expected K >= 2 logits for the score {score}, but got {classes}")
    shift = logits.new_zeros(count, 1, classes)
    members = torch.ones_like(shift, dtype=torch.bool)
    above, threshold = margin.sign > 0, margin.threshold
    level = torch.full_like(logits[:, 0], -threshold)
    if kind.absent:
        shift[..., -1], members[..., -1] = 1.0, False
    if kind.relative:
        level = torch.full_like(level, -math.log(-threshold) if threshold < 0 else math.inf)
        eye = torch.eye(classes, dtype=logits.dtype, device=logits.device)
        if above:
            shift = eye[logits.argmax(1)].unsqueeze(1)
        else:
            shift = eye.expand(count, classes, classes)
            members = torch.ones_like(shift, dtype=torch.bool)
        above = not above
    return Goal(above, kind.soft, shift, members, level)


def class_goal(score: str, logits: Tensor, labels: Tensor) -> Goal:
    """The goal that no other ID class gets as large a logit as the labels' (B,)."""
    classes = logits.shape[1]
    one_hot = torch.nn.functional.one_hot(labels, classes).unsqueeze(1)
    members = ~one_hot.bool()
    members[..., score_of(score).classes(classes) :] = False  # an absent class is never predicted
    return Goal(False, False, one_hot.to(logits), members, torch.zeros_like(logits[:, 0]))
