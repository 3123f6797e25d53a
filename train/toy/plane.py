"""Two detectors in the plane, with the gradient penalty and without: the paper's motivating figure.

Figure 1 of Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024, says
that outliers of one score may differ in slope. In the plane all of it can be looked at: the surface
on a grid, and balls around points by brute force. That search proves nothing, but misses little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.outlier_losses import energy_margin_loss
from greg_cert.scores import energy
from greg_cert.train.objective.gradient_loss import correctly_detected, gradient_loss
from greg_cert.train.objective.penalty import gradient_penalty
from greg_cert.train.observer import Observer, SilentObserver

METHODS = ("energy", "greg")
_LOG_EVERY = 50


@dataclass(frozen=True)
class ToySettings:
    """What the demonstration depends on; lengths are in units of the plane.

    Half of the outliers lie in rings around the blobs and so between them too, half anywhere in the
    box.
    """

    seed: int = 0  # of the points and the initial weights
    classes: int = 3  # Gaussian blobs, their centres on a circle
    centre: float = 1.8  # radius of that circle
    spread: float = 0.3  # standard deviation of a blob
    per_class: int = 50  # points of each class in each of the splits train, calibration and test
    outliers: int = 150  # auxiliary points, and as many held out
    gap: float = 0.9  # least distance of an outlier to the centre of a blob
    extent: float = 4.0  # half the side of the box
    hidden: int = 64  # width of the two hidden layers
    steps: int = 600  # of training, each on all points
    lr: float = 0.01  # of Adam, annealed to 0 along a cosine
    m_in: float = -8.0  # margin of ID scores
    m_out: float = -2.0  # margin of outlier scores
    lambda_score: float = 0.1  # weight of L_S
    lambda_grad: float = 1.0  # weight of L_∇, of which `energy` has none
    radius: float = 0.25  # of the balls that are searched for a crossing
    grid: int = 161  # points along each side of the box where the surface is evaluated

    def __post_init__(self) -> None:
        for name in ("classes", "per_class", "outliers", "hidden", "steps", "grid"):
            if getattr(self, name) < 2:
                raise UsageError(f"toy {name}: expected at least 2, but got {getattr(self, name)}")
        for name in ("spread", "extent", "lr", "radius"):
            if not getattr(self, name) > 0:
                raise UsageError(f"toy {name}: expected > 0, but got {getattr(self, name)}")
        if not self.gap < self.extent:
            raise UsageError(f"toy gap: expected < extent = {self.extent}, but got {self.gap}")


@dataclass(frozen=True)
class Points:
    """Points of the plane (N, 2) in float64, and labels of the ID ones (N,)."""

    train: Tensor
    calibration: Tensor
    test: Tensor
    labels: Tensor  # of each of the three
    aux: Tensor
    outliers: Tensor  # drawn like `aux`, never trained on
    centres: Tensor  # (K, 2)


def draw_points(settings: ToySettings) -> Points:
    """Blobs, and outliers around and between them, by the seed alone."""
    generator = torch.Generator().manual_seed(settings.seed)
    angle = math.pi / 2 + 2 * math.pi * torch.arange(settings.classes).double() / settings.classes
    centres = settings.centre * torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.arange(settings.classes).repeat_interleave(settings.per_class)

    def blobs() -> Tensor:
        noise = torch.randn(len(labels), 2, generator=generator, dtype=torch.float64)
        return centres[labels] + settings.spread * noise

    def apart(draw: Callable[[], Tensor], count: int) -> Tensor:
        kept = torch.empty(0, 2, dtype=torch.float64)
        while len(kept) < count:
            new = draw()
            kept = torch.cat([kept, new[torch.cdist(new, centres).amin(1) > settings.gap]])
        return kept[:count]

    def box() -> Tensor:
        sides = torch.rand(settings.outliers, 2, generator=generator, dtype=torch.float64)
        return settings.extent * (2 * sides - 1)

    def rings() -> Tensor:
        turn, out, which = torch.rand(
            3, settings.outliers, generator=generator, dtype=torch.float64
        )
        around = torch.stack([(2 * math.pi * turn).cos(), (2 * math.pi * turn).sin()], dim=1)
        centre = centres[(settings.classes * which).long()]
        off: Tensor = settings.gap * (1 + 0.6 * out)
        return centre + off.unsqueeze(1) * around

    def outliers() -> Tensor:
        half = settings.outliers // 2
        return torch.cat([apart(rings, half), apart(box, settings.outliers - half)])

    return Points(blobs(), blobs(), blobs(), labels, outliers(), outliers(), centres)


def build_classifier(settings: ToySettings) -> nn.Sequential:
    """An MLP from points (B, 2) to logits (B, K), in float64; equal settings give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        width = settings.hidden
        return nn.Sequential(
            nn.Linear(2, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, settings.classes),
        ).double()


def train_classifier(
    method: str, points: Points, settings: ToySettings, *, observer: Observer | None = None
) -> nn.Sequential:
    """L_CE + λ_S·L_S, and for `greg` + λ_∇·L_∇, minimised on all points at once by Adam."""
    if method not in METHODS:
        raise UsageError(f"expected method in {', '.join(METHODS)}, but got {method!r}")
    watch = observer or SilentObserver()
    watch.begin(settings.steps, 0)
    model = build_classifier(settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    inputs = torch.cat([points.train, points.aux]).requires_grad_()
    n = len(points.train)
    is_id = torch.arange(len(inputs)) < n
    margins = {"m_in": settings.m_in, "m_out": settings.m_out}
    for step in range(settings.steps):
        logits = model(inputs)
        scores = energy(logits)
        ce = F.cross_entropy(logits[:n], points.labels)
        score_loss = energy_margin_loss(scores[:n], scores[n:], **margins)
        loss = ce + settings.lambda_score * score_loss
        values = {"ce": ce, "score_loss": score_loss}
        if method == "greg":
            norms = gradient_penalty(
                lambda x: energy(model(x)), inputs, scores=scores, estimator="double-backward"
            )
            right = correctly_detected(scores.detach(), is_id, **margins)
            grad_loss = gradient_loss(norms[:n], right[:n], norms[n:], right[n:])
            loss = loss + settings.lambda_grad * grad_loss
            values["grad_loss"] = grad_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        shown = step % _LOG_EVERY == 0
        watch.step(
            method, step + 1, {k: float(v.detach()) for k, v in values.items()} if shown else {}
        )
    return model.eval()
