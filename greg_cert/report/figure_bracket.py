"""Figure `bracket`: each sample's proven radius against the radius at which an attack succeeds."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from greg_cert.report.canvas import name_limit, new_axes
from greg_cert.report.curves import reach
from greg_cert.report.results import Results
from greg_cert.report.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex

RASTER_ABOVE = 3000  # points; beyond it the PDF holds the points as an image


def draw_bracket(results: Results, style: FigureStyle) -> Figure:
    """One point a sample, above the line y = x as long as no certificate is contradicted."""
    frame = results.frame
    missed = frame[(frame["status"] != "rejected") & np.isinf(frame["radius_attack"].astype(float))]
    notes = {}
    for run in results.runs:
        none = int((missed["run"] == run).sum())
        text = f": {none} without attack" if none else f" (n = {int(results.kept(run).sum())})"
        notes[run] = text
    styles = run_styles(results.runs, name_limit(style, results.runs, list(notes.values())))
    entries = [
        (
            Line2D([], [], color=s.colour, marker=s.marker, linestyle="", markersize=4),
            s.name + notes[run],
        )
        for run, s in styles.items()
    ]
    figure, axes = new_axes(style, entries, aspect=0.78)
    certified = frame["radius_certified"].to_numpy(dtype=float)
    attack = frame["radius_attack"].to_numpy(dtype=float)
    right = 1.05 * float(certified.max(initial=0.0)) or reach(certified, attack, None)
    found = attack[np.isfinite(attack)]
    top = 1.08 * max(float(found.max(initial=0.0)), right)
    crowded = len(frame) > RASTER_ABOVE
    for run, look in styles.items():
        kept = results.kept(run)
        x, y = (results.column(run, f"radius_{c}")[kept] for c in ("certified", "attack"))
        some = np.isfinite(y)
        axes.plot(
            *(x[some], y[some], look.marker),
            color=look.colour,
            markersize=2.6,
            markeredgewidth=0.4,
            markerfacecolor=(look.colour, 0.3),
            rasterized=crowded,
        )
        rim = np.full(int((~some).sum()), 0.985 * top)
        axes.plot(x[~some], rim, "|", color=look.colour, markersize=5, rasterized=crowded)
    line = np.array([0.0, max(right, top)])
    axes.plot(line, line, color="0.15", linewidth=0.8)
    axes.fill_between(line, 0, line, color="0.5", alpha=0.15, linewidth=0)
    axes.text(
        *(0.97, 0.04),
        "contradicted: attack < certified",
        transform=axes.transAxes,
        ha="right",
        fontsize=style.small,
        color="0.25",
    )
    axes.set_xlim(-0.01 * right, right)
    axes.set_ylim(0, top)
    unit = f"{norm_tex(results.summary.norm)} radius"
    axes.set_xlabel(f"certified {unit}, proof (raw pixels in [0,1])")
    axes.set_ylabel(f"attack {unit}, upper bound")
    return figure
