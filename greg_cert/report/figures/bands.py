"""Figures `certified_fraction` and `ood_fpr`: shares against the radius as step curves.

The true curve lies in the band between that of the proofs and that of the attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from greg_cert.certificates.certified_metrics import (
    attacked_fpr,
    certified_acceptance,
    certified_fpr,
)
from greg_cert.certificates.results import Results
from greg_cert.report.figures.panels import name_limit, new_axes
from greg_cert.report.figures.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex

Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Band:
    """One run's curves: shares (m,) at radii (m,); those by proofs change just after the radii."""

    radii: Sequence[tuple[np.ndarray, np.ndarray]]  # certified, attack; a pair a set of samples
    proof: Curve
    attack: Curve


def draw_fraction(results: Results, style: FigureStyle) -> Figure:
    """Share of the samples that keep their side: lower bound by proof, upper bound by attack."""
    bands = {run: _of_samples(results, run) for run in results.runs}
    figure = _draw(results, bands, style, mark_zero=False)
    figure.axes[0].set_ylabel(f"fraction of {results.summary.side.upper()} samples")
    return figure


def draw_ood_fpr(results: Results, style: FigureStyle) -> Figure:
    """Share accepted as ID, mean over the OOD sets: upper bound by proof, lower bound by attack."""
    bands = {run: band for run in results.runs if (band := _of_ood_sets(results, run)).radii}
    figure = _draw(results, bands, style, mark_zero=True)
    several = max(len(band.radii) for band in bands.values()) > 1
    figure.axes[0].set_ylabel("FPR, mean over OOD sets" if several else "false-positive rate")
    return figure


def _of_samples(results: Results, run: str) -> _Band:
    certified, attack = (results.column(run, f"radius_{c}") for c in ("certified", "attack"))
    moved = np.where(results.kept(run), attack, 0.0)  # at once, where it is on the wrong side
    return _Band(
        [(certified, attack)],
        lambda at: certified_acceptance(certified, at),
        lambda at: 1 - attacked_fpr(moved, at),
    )


def _of_ood_sets(results: Results, run: str) -> _Band:
    radii = [
        (f["radius_certified"].to_numpy(dtype=float), f["radius_attack"].to_numpy(dtype=float))
        for dataset in results.ood_sets(run)
        if (f := results.ood_of(run, dataset)) is not None
    ]
    return _Band(
        radii,
        lambda at: np.asarray(np.mean([certified_fpr(proven, at) for proven, _ in radii], axis=0)),
        lambda at: np.asarray(np.mean([attacked_fpr(attack, at) for _, attack in radii], axis=0)),
    )


def _draw(
    results: Results, bands: Mapping[str, _Band], style: FigureStyle, *, mark_zero: bool
) -> Figure:
    """Proof (solid), attack (dashed), the band between; `mark_zero`: a share of 0 has markers."""
    styles = run_styles(results.runs, name_limit(style, results.runs), style.palette)
    entries = [
        (Line2D([], [], color=s.colour, marker=s.marker, markersize=4), s.name)
        for run, s in styles.items()
        if run in bands
    ]
    entries += [
        (Line2D([], [], color="0.25", linestyle="-"), "certified (proof)"),
        (Line2D([], [], color="0.25", linestyle="--", linewidth=1.0), "attack (bound)"),
    ]
    figure, axes = new_axes(style, entries)
    pairs = [pair for band in bands.values() for pair in band.radii]
    certified, attack = (np.concatenate(radii) for radii in zip(*pairs, strict=True))
    end = reach(certified, attack, results.summary.max_radius)
    shade = 0.13 if len(styles) <= 2 else 0.06
    for k, (run, look) in enumerate(styles.items()):
        if run not in bands:
            continue
        band = bands[run]
        corners = np.concatenate([radii for pair in band.radii for radii in pair])
        x = np.unique([0.0, *corners[corners < end], end])
        # The value just after each corner, which a "post" step carries to the next one.
        solid, dash = band.proof(np.nextafter(x, np.inf)), band.attack(x)
        low, high = np.minimum(solid, dash), np.maximum(solid, dash)
        axes.fill_between(x, low, high, step="post", color=look.colour, alpha=shade, linewidth=0)
        axes.plot(x, dash, drawstyle="steps-post", color=look.colour, linestyle="--", linewidth=1.0)
        axes.plot(x, solid, drawstyle="steps-post", color=look.colour)
        at = end * (np.arange(8) + (k + 0.5) / len(styles)) / 8
        for values in (band.proof(at), band.attack(at)):
            some = (values > 0) | mark_zero
            axes.plot(at[some], values[some], look.marker, color=look.colour, markersize=3.2)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"{norm_tex(results.summary.norm)} radius (raw pixels in [0,1])")
    return figure


def reach(certified: np.ndarray, attack: np.ndarray, max_radius: float | None) -> float:
    """Right end of a radius axis that shows every certificate and all but stray attacks."""
    found = attack[np.isfinite(attack)]
    proven = float(certified.max(initial=0.0))
    end = 1.05 * max(proven, float(np.quantile(found, 0.99)) if len(found) else 0.0)
    if end <= 0:
        return max_radius or 1.0
    return end if max_radius is None else min(end, max(max_radius, proven))
