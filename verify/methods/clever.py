"""The method `clever`: an estimate over balls no larger than the attack shows to be needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from greg_cert.verify.methods.method import Columns, Rows, Sampled
from greg_cert.verify.radius.sampled.clever import (
    CleverOptions,
    clever_estimate,
    clever_radius_estimate,
)
from greg_cert.verify.scorer import Detector


@dataclass(frozen=True)
class Clever(Sampled):
    """CLEVER, an estimate that proves nothing.

    Source: Weng et al., "Evaluating the Robustness of Neural Networks: An Extreme Value Theory
    Approach", ICLR 2018.

    Attributes:
        clever: how the estimate is made.
    """

    clever: CleverOptions = field(default_factory=CleverOptions)

    def columns(self, detector: Detector, rows: Rows, norm: float, max_radius: float) -> Columns:
        """`radius_clever`, and the p-value of its fit."""
        ball = torch.where(rows.attacked > 0, rows.attacked, max_radius).nan_to_num(
            nan=max_radius, posinf=max_radius
        )
        found = clever_estimate(
            detector.score, rows.x, ball, norm=norm, options=self.clever, indices=rows.names
        )
        radius = clever_radius_estimate(rows.gap, found, ball)
        return {
            "radius_clever": torch.where(rows.wrong, 0.0, radius),
            "clever_fit_pvalue": found.fit_pvalue,
        }
