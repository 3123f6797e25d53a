"""Figure `ood_fpr`: the share of OOD samples accepted as ID under perturbation, by the radius."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from greg_cert.certificates.certified_metrics import attacked_fpr, certified_fpr
from greg_cert.certificates.results import Results
from greg_cert.report.figures.canvas import name_limit, new_axes
from greg_cert.report.figures.curves import corners, reach
from greg_cert.report.figures.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex


def draw_ood_fpr(results: Results, style: FigureStyle) -> Figure:
    """Upper bound by proof (solid), lower bound by attack (dashed), means over the OOD sets."""
    sides = {run: _sides(results, run) for run in results.runs}
    styles = run_styles(results.runs, name_limit(style, results.runs), style.palette)
    entries = [
        (Line2D([], [], color=s.colour, marker=s.marker, markersize=4), s.name)
        for run, s in styles.items()
        if sides[run]
    ]
    entries += [
        (Line2D([], [], color="0.25", linestyle="-"), "certified (proof)"),
        (Line2D([], [], color="0.25", linestyle="--", linewidth=1.0), "attack (bound)"),
    ]
    figure, axes = new_axes(style, entries)
    pairs = [pair for side in sides.values() for pair in side]
    certified, attack = (np.concatenate(column) for column in zip(*pairs, strict=True))
    end = reach(certified, attack, results.summary.max_radius)
    shade = 0.13 if len(styles) <= 2 else 0.06
    for k, (run, look) in enumerate(styles.items()):
        if not sides[run]:
            continue
        x = corners(*(column for pair in sides[run] for column in pair), end=end)
        # The value just after each corner, which a "post" step carries to the next one.
        high, low = (
            mean_certified(sides[run], np.nextafter(x, np.inf)),
            mean_attacked(sides[run], x),
        )
        axes.fill_between(x, low, high, step="post", color=look.colour, alpha=shade, linewidth=0)
        axes.plot(x, low, drawstyle="steps-post", color=look.colour, linestyle="--", linewidth=1.0)
        axes.plot(x, high, drawstyle="steps-post", color=look.colour)
        at = end * (np.arange(8) + (k + 0.5) / len(styles)) / 8
        for values in (mean_certified(sides[run], at), mean_attacked(sides[run], at)):
            axes.plot(at, values, look.marker, color=look.colour, markersize=3.2)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"{norm_tex(results.summary.norm)} radius (raw pixels in [0,1])")
    several = max(len(side) for side in sides.values()) > 1
    axes.set_ylabel("FPR, mean over OOD sets" if several else "false-positive rate")
    return figure


def mean_certified(side: list[tuple[np.ndarray, np.ndarray]], radii: np.ndarray) -> np.ndarray:
    """Mean over OOD sets of the certified FPR, an upper bound of the mean FPR, shape (m,)."""
    return np.asarray(np.mean([certified_fpr(proven, radii) for proven, _ in side], axis=0))


def mean_attacked(side: list[tuple[np.ndarray, np.ndarray]], radii: np.ndarray) -> np.ndarray:
    """Mean over OOD sets of the attacked FPR, a lower bound of the mean FPR, shape (m,)."""
    return np.asarray(np.mean([attacked_fpr(attack, radii) for _, attack in side], axis=0))


def _sides(results: Results, run: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Certified and attack radii of each OOD set of a run."""
    frames = [results.ood_of(run, dataset) for dataset in results.ood_sets(run)]
    return [
        (f["radius_certified"].to_numpy(dtype=float), f["radius_attack"].to_numpy(dtype=float))
        for f in frames
        if f is not None
    ]
