"""Figure `radius_histogram`: how the certified radii are distributed, run over run."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from greg_cert.certificates.results import Results
from greg_cert.report.figures.bars import bars_key, draw_bars
from greg_cert.report.figures.panels import name_limit, new_axes
from greg_cert.report.figures.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex, wrong_side

FILL_UP_TO = 2  # runs; more outlines than that are clearer empty


def _note(results: Results, run: str, radii: np.ndarray) -> str:
    rejected = int((~results.kept(run)).sum())
    unproven = int((results.kept(run) & (radii == 0)).sum())
    note = f": {rejected} {wrong_side(results.summary)}"
    return note + (f", {unproven} unproven" if unproven else "")


def draw_histogram(results: Results, style: FigureStyle) -> Figure:
    """Certified radii above 0, one outline a run; samples without one are counted in the legend."""
    radii = {run: results.column(run, "radius_certified") for run in results.runs}
    notes = {run: _note(results, run, radii[run]) for run in results.runs}
    styles = run_styles(
        results.runs, name_limit(style, results.runs, list(notes.values())), style.palette
    )
    fill = 0.22 if len(styles) <= FILL_UP_TO else 0.0
    entries = [(bars_key(look, fill), look.name + notes[run]) for run, look in styles.items()]
    figure, axes = new_axes(style, entries)
    positive = {run: r[r > 0] for run, r in radii.items()}
    largest = float(np.concatenate([*positive.values()]).max(initial=0.0))
    edges = np.linspace(0.0, largest or 1.0, style.bins + 1)
    for run, look in styles.items():
        heights, _ = np.histogram(positive[run], edges)
        draw_bars(axes, heights, edges, look, fill, linewidth=1.3)
        if len(positive[run]):
            middle = float(np.median(radii[run]))
            axes.axvline(middle, color=look.colour, linestyle=look.line, linewidth=0.9)
    if not largest:
        words = "no radius above 0"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel(f"certified {norm_tex(results.summary.norm)} radius (raw pixels in [0,1])")
    axes.set_ylabel("samples per bin")
    return figure
