"""Figure `radius_histogram`: how the certified radii are distributed, run over run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from greg_cert.certificates.results import Results
from greg_cert.report.figures.bands import reach
from greg_cert.report.figures.bars import bars_key, draw_bars
from greg_cert.report.figures.panels import name_limit, new_axes, width_of
from greg_cert.report.figures.style import FigureStyle, run_styles
from greg_cert.report.wording import norm_tex, radius, radius_digits, wrong_side

FILL_UP_TO = 2  # runs; more outlines than that are clearer empty
_LIGHT: Any = {"linewidth": 0.7, "alpha": 0.55}
_NAME = 12  # characters of a name that a legend of one line has room for


def draw_histogram(results: Results, style: FigureStyle) -> Figure:
    """Certified radii above 0, one outline a run; samples without one are counted in the legend.

    Where the style says so, light outlines show the radii at which an attack succeeded.
    """
    radii = {run: results.column(run, "radius_certified") for run in results.runs}
    attack = {run: results.column(run, "radius_attack") for run in results.runs}
    notes = _notes(results, radii, attack, style)
    styles = run_styles(
        *(
            results.runs,
            name_limit(style, results.runs, [n.split("\n")[0] for n in notes.values()]),
        ),
        style.palette,
    )
    fill = 0.22 if len(styles) <= FILL_UP_TO else 0.0
    entries = [(bars_key(look, fill), look.name + notes[run]) for run, look in styles.items()]
    if style.attack:
        entries.append(
            (Patch(facecolor="none", edgecolor="0.25", **_LIGHT), "attack (upper bound)")
        )
    title = "median: certified / attack" if style.attack else "median certified radius"
    figure, axes = new_axes(style, entries, title=title)
    certified = np.concatenate([*radii.values()])
    largest = float(certified.max(initial=0.0))
    end = largest or 1.0
    if style.attack:
        end = max(end, reach(certified, np.concatenate([*attack.values()]), None))
    edges = np.linspace(0.0, end, style.bins_of(results.samples) + 1)
    for run, look in styles.items():
        if style.attack:
            found = attack[run][results.kept(run)]
            heights, _ = np.histogram(found, edges)
            axes.stairs(heights, edges, color=look.colour, linestyle=look.line, **_LIGHT)
        positive = radii[run][radii[run] > 0]
        heights, _ = np.histogram(positive, edges)
        draw_bars(axes, heights, edges, look, fill, linewidth=1.3)
        if len(positive):
            middle = float(np.median(radii[run]))
            axes.axvline(middle, color=look.colour, linestyle=look.line, linewidth=0.9)
    if not largest:
        words = "no radius above 0"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
    axes.set_xlim(0, 1.02 * edges[-1])  # the last outline is not half behind the frame
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    kind = "" if style.attack else "certified "
    axes.set_xlabel(f"{kind}{norm_tex(results.summary.norm)} radius (raw pixels in [0,1])")
    axes.set_ylabel("samples per bin")
    return figure


def _notes(
    results: Results,
    radii: Mapping[str, np.ndarray],
    attack: Mapping[str, np.ndarray],
    style: FigureStyle,
) -> dict[str, str]:
    """What the legend says of each run: medians, then the samples not drawn, on a second line.

    On one line where the longest name has room beside it.
    """
    most = results.summary.max_radius
    proven = {run: float(np.median(values)) for run, values in radii.items()}
    digits = radius_digits([*proven.values()])
    medians, rest = {}, {}
    for run in results.runs:
        medians[run] = f": {radius(proven[run], digits, most)}"
        if style.attack:
            medians[run] += f" / {radius(float(np.median(attack[run])), digits, most)}"
        rejected = int((~results.kept(run)).sum())
        unproven = int((results.kept(run) & (radii[run] == 0)).sum())
        rest[run] = f"{rejected} {wrong_side(results.summary)}"
        rest[run] += f", {unproven} unproven" if unproven else ""
    whole = [f"{run[:_NAME]}{medians[run]}; {rest[run]}" for run in results.runs]
    one = max(width_of(text, style) for text in whole) < style.width - 0.6
    between = "; " if one else "\n"
    return {run: medians[run] + between + rest[run] for run in results.runs}
