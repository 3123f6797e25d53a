"""Figure `gradient_vs_certified`: does a small input gradient go with a large proven radius?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from greg_cert.report.canvas import name_limit, new_axes
from greg_cert.report.figure_bracket import RASTER_ABOVE
from greg_cert.report.results import Results
from greg_cert.report.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex


def draw_gradient(results: Results, style: FigureStyle) -> Figure:
    """One point a sample on the right side; samples without a finite gradient norm are left out."""
    points = {}
    for run in results.runs:
        x = results.column(run, "gradient_norm")
        use = results.kept(run) & np.isfinite(x)
        points[run] = (x[use], results.column(run, "radius_certified")[use])
    notes = {run: f" (n = {len(x)})" for run, (x, _) in points.items()}
    styles = run_styles(results.runs, name_limit(style, results.runs, list(notes.values())))
    entries = [
        (
            Line2D([], [], color=s.colour, marker=s.marker, linestyle="", markersize=4),
            s.name + notes[run],
        )
        for run, s in styles.items()
    ]
    figure, axes = new_axes(style, entries)
    for run, look in styles.items():
        axes.plot(
            *(*points[run], look.marker),
            color=look.colour,
            markersize=2.6,
            markeredgewidth=0.4,
            markerfacecolor=(look.colour, 0.3),
            rasterized=len(results.frame) > RASTER_ABOVE,
        )
    norms = np.concatenate([x for x, _ in points.values()])
    positive = norms[norms > 0]
    if len(positive) == len(norms) > 0 and positive.max() > 20 * positive.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif len(positive):
        axes.set_xlim(0, 1.05 * float(positive.max()))
    largest = max((float(y.max(initial=0.0)) for _, y in points.values()), default=0.0)
    axes.set_ylim(-0.02 * (largest or 1.0), 1.06 * (largest or 1.0))
    axes.set_xlabel(r"$\|\nabla S(x)\|_*$ at the sample (estimate)")
    axes.set_ylabel(f"certified {norm_tex(results.summary.norm)} radius\n(raw pixels in [0,1])")
    return figure
