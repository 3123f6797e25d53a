"""Figure `bracket`: each sample's proven radius against the radius at which an attack succeeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from greg_cert.certificates.results import Results
from greg_cert.report.figures.bands import reach
from greg_cert.report.figures.clouds import RASTER_ABOVE, cloud_axes, label_axes
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.wording import norm_tex


def draw_bracket(results: Results, style: FigureStyle) -> Figure:
    """One point a sample, above the line y = x as long as no certificate is contradicted."""
    frame = results.frame
    missed = frame[(frame["status"] != "rejected") & np.isinf(frame["radius_attack"].astype(float))]
    notes = {}
    for run in results.runs:
        none = int((missed["run"] == run).sum())
        notes[run] = f"{none} without attack" if none else f"n = {int(results.kept(run).sum())}"
    figure, axes, looks = cloud_axes(notes, style, aspect=0.78)
    certified = _claimed(frame)
    attack = frame["radius_attack"].to_numpy(dtype=float)
    right = 1.05 * float(certified.max(initial=0.0)) or reach(certified, attack, None)
    found = attack[np.isfinite(attack)]
    top = 1.08 * max(float(found.max(initial=0.0)), right)
    crowded = len(frame) > RASTER_ABOVE
    for run, look in looks.items():
        kept = results.kept(run)
        x = _claimed(results.of(run))[kept]
        y = results.column(run, "radius_attack")[kept]
        some = np.isfinite(y)
        axes[run].plot(x[some], y[some], rasterized=crowded, **look.points)
        rim = np.full(int((~some).sum()), 0.985 * top)
        axes[run].plot(x[~some], rim, "|", color=look.colour, markersize=5, rasterized=crowded)
    line = np.array([0.0, max(right, top)])
    for panel in figure.axes:
        panel.plot(line, line, color="0.15", linewidth=0.8)
        panel.fill_between(line, 0, line, color="0.5", alpha=0.15, linewidth=0)
        panel.set_xlim(-0.01 * right, right)
        panel.set_ylim(0, top)
    if len(figure.axes) == 1:
        (panel,) = figure.axes
        words, small = "contradicted: attack < certified", style.small
        panel.text(
            0.97, 0.04, words, transform=panel.transAxes, ha="right", fontsize=small, color="0.25"
        )
    unit = f"{norm_tex(results.summary.norm)} radius"
    proof, bound = f"certified {unit}, proof (raw pixels in [0,1])", f"attack {unit}, upper bound"
    label_axes(figure, style, proof, bound)
    return figure


def _claimed(rows: pd.DataFrame) -> np.ndarray:
    """The radius (n,) that was proven for each row, or was thought to be."""
    proven = rows["radius_certified"].to_numpy(dtype=float)
    # Results of an earlier version have no refuted radii.
    refuted = rows.get("radius_refuted", rows["radius_certified"]).to_numpy(dtype=float)
    return np.asarray(np.fmax(proven, refuted))
