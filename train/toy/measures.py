"""Measuring the detectors in the plane: the surface on a grid, and balls by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from greg_cert.metrics import threshold_at_tpr
from greg_cert.scores import energy
from greg_cert.train.observer import Observer, SilentObserver
from greg_cert.train.toy.plane import METHODS, Points, ToySettings, draw_points, train_classifier

TPR = 0.95
_ANGLES = 64  # directions of the search for a crossing
_RINGS = 30  # circles of it
_RINGS_WITHIN = 5  # of which so many lie in the ball of `radius`
_CHUNK = 64
_ALIKE = 0.02  # scores of a pair differ by no more than this share of m_out - m_in
_STEEPER = 2.0  # and one slope is at least so many times the other


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
    """One detector, looked at everywhere."""

    model: nn.Module
    threshold: float  # γ of the calibration split
    numbers: dict[str, float | None]  # what was measured, by name; None where it is not finite
    score: np.ndarray  # (G, G), S over the box, rows from the bottom upwards
    slope: np.ndarray  # (G, G), ‖∇S‖₂ over the box
    cut_score: np.ndarray  # (M,), S along the cut
    cut_slope: np.ndarray  # (M,), ‖∇S‖₂ along the cut


@dataclass(frozen=True)
class Toy:
    """Both detectors, their points, and two outliers of one score where `energy` has such."""

    settings: ToySettings
    points: Points
    axis: np.ndarray  # (G,) coordinates of the grid along each side
    cut: np.ndarray  # (M, 2), a line through the centres of the first two blobs
    runs: dict[str, ToyRun]  # by method
    pair: tuple[int, int] | None  # rows of the steep and the gentle outlier in `points.outliers`


def run_toy(
    settings: ToySettings, *, observe: Callable[[str], Observer] = lambda _: SilentObserver()
) -> Toy:
    """Train both detectors from the same weights on the same points, and measure them.

    `observe` goes from a method's name to what watches its training.
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
