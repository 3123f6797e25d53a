"""The method `smoothing`: a probabilistic proof about the smoothed detector."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from greg_cert.verify.methods.method import Columns, Rows, Sampled
from greg_cert.verify.per_sample import check_rowwise
from greg_cert.verify.radius.sampled.smoothing import (
    ABSTAINED,
    ACCEPTED,
    REJECTED,
    Accept,
    SmoothingOptions,
    smoothed_decisions,
)
from greg_cert.verify.scorer import Detector


@dataclass(frozen=True)
class Smoothing(Sampled):
    """Randomised smoothing, about another function than the model itself.

    Source: Cohen et al., "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.

    Attributes:
        smoothing: how decisions are smoothed.
    """

    smoothing: SmoothingOptions = field(default_factory=SmoothingOptions)

    def columns(self, detector: Detector, rows: Rows, norm: float, max_radius: float) -> Columns:
        """Decisions of the smoothed detector, and how far the right ones hold."""
        x, labels = rows.x, rows.labels
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu")
        check_rowwise(detector.logits, x + self.smoothing.sigma * noise.to(x), "the model")
        radius = torch.empty_like(rows.gap)
        decision = np.full(len(x), ABSTAINED)
        for label in [None] if labels is None else labels.unique():
            of = torch.ones_like(rows.wrong) if label is None else labels == label
            found = smoothed_decisions(
                _accept(detector, label),
                x[of],
                self.smoothing,
                indices=rows.names[of.cpu()],
                norm=norm,
                max_radius=max_radius,
            )
            radius[of], decision[of.cpu().numpy()] = found.radius, found.decision
        wrong = decision == (REJECTED if detector.margin.sign > 0 else ACCEPTED)
        # How long a decision stays wrong is no radius of this side.
        radius = radius.masked_fill(torch.as_tensor(wrong, device=radius.device), 0.0)
        return {"radius_smoothing": radius, "smoothing_decision": decision}


def _accept(detector: Detector, label: Tensor | None) -> Accept:
    """What is smoothed: acceptance, and the class too where labels are given. NaN: rejected."""

    def accept(noisy: Tensor) -> Tensor:
        logits = detector.logits(noisy.double())
        accepted = detector.value(logits) <= detector.margin.threshold
        if label is None:
            return accepted
        return accepted & detector.is_correct(logits, label.expand(len(noisy)))

    return accept
