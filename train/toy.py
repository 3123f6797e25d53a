"""Two detectors in the plane, with the gradient penalty and without: the paper's motivating figure.

Figure 1 of Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024, says
that outliers of one score may differ in slope. In the plane all of it can be looked at: the surface
on a grid, and balls around points by brute force. That search proves nothing, but misses little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.metrics import threshold_at_tpr
from greg_cert.scores import energy
from greg_cert.train.journal import Observer, SilentObserver
from greg_cert.train.losses import correctly_detected, energy_margin_loss, gradient_loss
from greg_cert.train.penalty import gradient_penalty

METHODS = ("energy", "greg")
TPR = 0.95
_ANGLES = 64  # directions of the search for a crossing
_RINGS = 30  # circles of it
_RINGS_WITHIN = 5  # of which so many lie in the ball of `radius`
_CHUNK = 64
_ALIKE = 0.02  # scores of a pair differ by no more than this share of m_out - m_in
_STEEPER = 2.0  # and one slope is at least so many times the other
_LOG_EVERY = 50


@dataclass(frozen=True)
class ToySettings:
    """What the demonstration depends on; lengths are in units of the plane.

    Attributes:
        seed: of the points and the initial weights.
        classes: number of Gaussian blobs, their centres on a circle.
        centre: radius of that circle.
        spread: standard deviation of a blob.
        per_class: points of each class in each of the splits train, calibration and test.
        outliers: auxiliary points, and as many held out; half in rings around the blobs and so
            between them too, half anywhere in the box.
        gap: least distance of an outlier to the centre of a blob.
        extent: half the side of the box.
        hidden: width of the two hidden layers.
        steps: steps of training, each on all points.
        lr: learning rate of Adam, annealed to 0 along a cosine.
        m_in: margin of ID scores.
        m_out: margin of outlier scores.
        lambda_score: weight of L_S.
        lambda_grad: weight of L_∇; without it for `energy`.
        radius: of the balls that are searched for a crossing.
        grid: points along each side of the box where the surface is evaluated.
    """

    seed: int = 0
    classes: int = 3
    centre: float = 1.8
    spread: float = 0.3
    per_class: int = 50
    outliers: int = 150
    gap: float = 0.9
    extent: float = 4.0
    hidden: int = 64
    steps: int = 600
    lr: float = 0.01
    m_in: float = -8.0
    m_out: float = -2.0
    lambda_score: float = 0.1
    lambda_grad: float = 1.0
    radius: float = 0.25
    grid: int = 161

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


def score_and_slope(model: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """S (N,) and ‖∇S‖₂ (N,) at points (N, 2)."""
    x = points.detach().clone().requires_grad_()
    scores = energy(model(x))
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach(), torch.linalg.vector_norm(gradient, dim=1)


def crossing_radius(
    model: nn.Module, points: Tensor, threshold: float, *, step: float, rings: int = _RINGS
) -> Tensor:
    """Smallest radius (N,) at which a grid of circles around a point meets the other verdict.

    An upper bound of the distance to the boundary S = γ; infinite where `rings` circles, `step`
    apart, meet none.
    """
    angle = 2 * math.pi * torch.arange(_ANGLES, dtype=torch.float64) / _ANGLES
    radii = step * torch.arange(1, rings + 1, dtype=torch.float64)
    circles = radii[:, None, None] * torch.stack([angle.cos(), angle.sin()], dim=1)  # (R, A, 2)
    found = []
    with torch.no_grad():
        for x in points.split(_CHUNK):
            inside = energy(model(x)) <= threshold
            around = energy(model((x[:, None, None] + circles).flatten(0, 2))) <= threshold
            other = (around.unflatten(0, (len(x), rings, _ANGLES)) != inside[:, None, None]).any(2)
            first = radii[other.double().argmax(1)]
            found.append(torch.where(other.any(1), first, math.inf))
    return torch.cat(found)


@dataclass(frozen=True)
class ToyRun:
    """One detector, looked at everywhere.

    Attributes:
        model: the trained classifier.
        threshold: γ of the calibration split.
        numbers: what was measured, by name; None where it is not finite.
        score: S over the box, shape (G, G), rows from the bottom upwards.
        slope: ‖∇S‖₂ over the box, shape (G, G).
        cut_score: S along the cut, shape (M,).
        cut_slope: ‖∇S‖₂ along the cut, shape (M,).
    """

    model: nn.Module
    threshold: float
    numbers: dict[str, float | None]
    score: np.ndarray
    slope: np.ndarray
    cut_score: np.ndarray
    cut_slope: np.ndarray


@dataclass(frozen=True)
class Toy:
    """Both detectors, their points, and two outliers of one score where `energy` has such.

    Attributes:
        settings: what all of it follows from.
        points: the splits.
        axis: coordinates of the grid along each side, shape (G,).
        cut: a line through the centres of the first two blobs, shape (M, 2).
        runs: by method.
        pair: rows of the steep and of the gentle outlier in `points.outliers`, or None.
    """

    settings: ToySettings
    points: Points
    axis: np.ndarray
    cut: np.ndarray
    runs: dict[str, ToyRun]
    pair: tuple[int, int] | None


def run_toy(
    settings: ToySettings, *, observe: Callable[[str], Observer] = lambda _: SilentObserver()
) -> Toy:
    """Train both detectors from the same weights on the same points, and measure them.

    Args:
        settings: everything.
        observe: from a method's name to what watches its training.
    """
    points = draw_points(settings)
    axis = torch.linspace(-settings.extent, settings.extent, settings.grid, dtype=torch.float64)
    one, two = points.centres[:2]
    along = (two - one) / torch.linalg.vector_norm(two - one)
    reach = settings.extent * torch.linspace(-1, 1, 4 * settings.grid, dtype=torch.float64)
    cut = (one + two) / 2 + reach[:, None] * along
    runs = {}
    for method in METHODS:
        model = train_classifier(method, points, settings, observer=observe(method))
        runs[method] = _measure(model, points, axis, cut, settings)
    pair = find_pair(runs["energy"], points.outliers, settings)
    return Toy(settings, points, axis.numpy(), cut.numpy(), runs, pair)


def _measure(
    model: nn.Module, points: Points, axis: Tensor, cut: Tensor, settings: ToySettings
) -> ToyRun:
    threshold = threshold_at_tpr(score_and_slope(model, points.calibration)[0], TPR)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    score, slope = score_and_slope(model, torch.stack([columns, rows], dim=2).flatten(0, 1))
    cut_score, cut_slope = score_and_slope(model, cut)
    with torch.no_grad():
        accuracy = (model(points.test).argmax(1) == points.labels).double().mean()
    numbers: dict[str, float | None] = {"accuracy": float(accuracy), "threshold": threshold}
    numbers |= {
        "gradient_plane_mean": float(slope.mean()),
        "gradient_plane_max": float(slope.max()),
    }
    for name, x in (("id", points.test), ("outliers", points.outliers)):
        s, g = score_and_slope(model, x)
        right = (s <= threshold) == (name == "id")
        crossing = crossing_radius(model, x, threshold, step=settings.radius / _RINGS_WITHIN)[right]
        within = crossing <= settings.radius * (1 + 1e-9)
        numbers |= {
            f"{name}_accepted": float((s <= threshold).double().mean()),
            f"score_{name}_mean": float(s.mean()),
            f"gradient_{name}_mean": float(g.mean()),
            f"gradient_{name}_max": float(g.max()),
            f"crossing_{name}_share": _finite(float(within.double().mean())),
            f"crossing_{name}_radius_median": _median(crossing),
            f"first_order_{name}_radius_median": _median(((s - threshold).abs() / g)[right]),
        }
    side = (settings.grid, settings.grid)
    return ToyRun(
        model,
        threshold,
        numbers,
        *(score.reshape(side).numpy(), slope.reshape(side).numpy()),
        *(cut_score.numpy(), cut_slope.numpy()),
    )


def _median(values: Tensor) -> float | None:
    return _finite(float(np.median(values.numpy()))) if len(values) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def find_pair(run: ToyRun, outliers: Tensor, settings: ToySettings) -> tuple[int, int] | None:
    """The rejected outliers (steep, gentle) of nearly one score that differ most in slope, if any.

    Nearly: by at most 2 % of m_out − m_in. The steep one's slope is at least twice the other's.
    """
    scores, slopes = score_and_slope(run.model, outliers)
    out = scores > run.threshold
    alike = (scores[:, None] - scores).abs() <= _ALIKE * (settings.m_out - settings.m_in)
    steeper = slopes[:, None] >= _STEEPER * slopes
    able = alike & steeper & out[:, None] & out & (slopes[:, None] > 0)
    if not able.any():
        return None
    lead = torch.where(able, slopes[:, None] - slopes, -math.inf)
    steep, gentle = divmod(int(lead.argmax()), len(outliers))
    return steep, gentle
