"""Figure `certified_fraction`: the share of samples that keep their side, against the radius."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from greg_cert.certificates.results import Results
from greg_cert.report.figures.canvas import name_limit, new_axes
from greg_cert.report.figures.curves import certified_fraction, corners, reach, unbroken_fraction
from greg_cert.report.figures.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex


def draw_fraction(results: Results, style: FigureStyle) -> Figure:
    """Proof (solid) and attack (dashed) as step curves; the true curve lies in the shaded band."""
    styles = run_styles(results.runs, name_limit(style, results.runs), style.palette)
    entries = [
        (Line2D([], [], color=s.colour, marker=s.marker, markersize=4), s.name)
        for s in styles.values()
    ]
    entries += [
        (Line2D([], [], color="0.25", linestyle="-"), "certified (proof)"),
        (Line2D([], [], color="0.25", linestyle="--", linewidth=1.0), "attack (bound)"),
    ]
    figure, axes = new_axes(style, entries)
    certified = results.frame["radius_certified"].to_numpy(dtype=float)
    attack = results.frame["radius_attack"].to_numpy(dtype=float)
    end = reach(certified, attack, results.summary.max_radius)
    shade = 0.13 if len(styles) <= 2 else 0.06
    for k, (run, look) in enumerate(styles.items()):
        proven, broken = (results.column(run, f"radius_{c}") for c in ("certified", "attack"))
        kept = results.kept(run)
        x = corners(proven, broken, end=end)
        # The value just after each corner, which a "post" step carries to the next one.
        low = certified_fraction(proven, kept, np.nextafter(x, np.inf))
        high = unbroken_fraction(broken, kept, x)
        axes.fill_between(x, low, high, step="post", color=look.colour, alpha=shade, linewidth=0)
        axes.plot(x, high, drawstyle="steps-post", color=look.colour, linestyle="--", linewidth=1.0)
        axes.plot(x, low, drawstyle="steps-post", color=look.colour)
        at = end * (np.arange(8) + (k + 0.5) / len(styles)) / 8
        for values in (
            certified_fraction(proven, kept, at),
            unbroken_fraction(broken, kept, at),
        ):
            some = values > 0
            axes.plot(at[some], values[some], look.marker, color=look.colour, markersize=3.2)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"{norm_tex(results.summary.norm)} radius (raw pixels in [0,1])")
    axes.set_ylabel(f"fraction of {results.summary.side.upper()} samples")
    return figure
