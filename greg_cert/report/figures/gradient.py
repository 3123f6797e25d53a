"""Figure `gradient_vs_certified`: does a small input gradient go with a large proven radius?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from greg_cert.certificates.results import Results
from greg_cert.report.figures.clouds import RASTER_ABOVE, cloud_axes, label_axes
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.wording import norm_tex, number


def draw_gradient(results: Results, style: FigureStyle) -> Figure:
    """One point a sample on the right side; samples without a finite gradient norm are left out."""
    points = {}
    for run in results.runs:
        x = results.column(run, "gradient_norm")
        use = results.kept(run) & np.isfinite(x)
        points[run] = (x[use], results.column(run, "radius_certified")[use])
    notes = {run: f"n = {len(x)}" for run, (x, _) in points.items()}
    figure, axes, looks = cloud_axes(notes, style, aspect=0.66)
    for run, look in looks.items():
        axes[run].plot(*points[run], rasterized=len(results.frame) > RASTER_ABOVE, **look.points)
    norms = np.concatenate([x for x, _ in points.values()])
    positive = norms[norms > 0]
    largest = max((float(y.max(initial=0.0)) for _, y in points.values()), default=0.0)
    for panel in figure.axes:
        if len(positive) == len(norms) > 0 and positive.max() > 20 * positive.min():
            panel.set_xscale("log")
            subs = (1.0, 2.0, 5.0) if len(figure.axes) == 1 else (1.0, 3.0)
            panel.xaxis.set_major_locator(LogLocator(subs=subs))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            panel.xaxis.set_minor_formatter(NullFormatter())
        elif len(positive):
            panel.set_xlim(0, 1.05 * float(positive.max()))
        panel.set_ylim(-0.02 * (largest or 1.0), 1.06 * (largest or 1.0))
    label_axes(
        *(figure, style),
        r"$\|\nabla S(x)\|_*$ at the sample (estimate)",
        f"certified {norm_tex(results.summary.norm)} radius\n(raw pixels in [0,1])",
    )
    return figure
