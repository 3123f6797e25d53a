"""The axes of figures with one point a sample: all runs in one, or a panel a run where many."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from greg_cert.report.figures.panels import name_limit, new_axes, new_panels, panel_width
from greg_cert.report.figures.style import FigureStyle, RunStyle, drawable, run_styles

TOGETHER = 2  # runs whose clouds can be told apart in one panel
RASTER_ABOVE = 3000  # points; beyond it the PDF holds the points as an image


def cloud_axes(
    notes: Mapping[str, str], style: FigureStyle, *, aspect: float
) -> tuple[Figure, dict[str, Axes], dict[str, RunStyle]]:
    """A figure, the axes of each run, the same ones for all where they are few, and its looks.

    `notes` is what is said beside each run's name; `aspect` is height over width of the axes.
    """
    runs = list(notes)
    if len(runs) <= TOGETHER:
        limit = name_limit(style, runs, [f": {note}" for note in notes.values()])
        looks = run_styles(runs, limit, style.palette)
        entries = [
            (Line2D([], [], **{**look.points, "markersize": 4}), f"{look.name}: {notes[run]}")
            for run, look in looks.items()
        ]
        figure, axes = new_axes(style, entries, aspect=aspect)
        return figure, dict.fromkeys(runs, axes), looks
    limit = name_limit(style, runs, room=panel_width(style, len(runs)))
    looks = run_styles(runs, limit, style.palette)
    titles = [f"{look.name}\n{drawable(notes[run])}" for run, look in looks.items()]
    figure, panels = new_panels(style, titles, aspect=aspect + 0.12)
    return figure, dict(zip(runs, panels, strict=True)), looks


def label_axes(figure: Figure, style: FigureStyle, x: str, y: str) -> None:
    """Name both directions, once for all panels."""
    if len(figure.axes) == 1:
        figure.axes[0].set_xlabel(x)
        figure.axes[0].set_ylabel(y)
    else:
        figure.supxlabel(x, fontsize=style.font_size)
        figure.supylabel(y, fontsize=style.font_size, multialignment="center")
