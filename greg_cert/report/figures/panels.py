"""Empty figures, axes and panels, and how much text fits beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.wording import one_line

CLOSE = {"borderpad": 0.1, "labelspacing": 0.25, "columnspacing": 1.2}
"""Spaces of a legend outside the axes."""


def width_of(label: str, style: FigureStyle) -> float:
    """Printed width of a label in the legend's type, in inches."""
    font = FontProperties(family=style.font, size=style.small)
    return float(TextPath((0, 0), label.replace("$", "S"), prop=font).get_extents().width) / 72


def name_limit(
    style: FigureStyle,
    runs: Sequence[str],
    notes: Sequence[str] = (),
    *,
    room: float | None = None,
) -> int:
    """How many characters of a run's name fit one line, `room` inches wide, beside any note."""
    least = 0.5 * style.small / 72
    letter = max([least, *(width_of(one_line(run), style) / max(len(run), 1) for run in runs)])
    room = style.width - 0.6 if room is None else room
    room -= max((width_of(note, style) for note in notes), default=0.0)
    return max(10, int(0.97 * room / letter))


def legend_columns(labels: Sequence[str], width: float, style: FigureStyle) -> int:
    """How many entries of a legend stand side by side in so many inches."""
    lines = [line for label in labels for line in label.split("\n")]
    longest = max((width_of(line, style) for line in lines), default=1.0)
    return max(1, min(len(labels), int(width / (longest + 4.6 * style.small / 72))))


def new_axes(
    style: FigureStyle, entries: Sequence[tuple[Any, str]], *, aspect: float = 0.66, title: str = ""
) -> tuple[Figure, Axes]:
    """An empty figure whose legend, of handles and labels, lies above the axes and hides no data.

    `aspect` is height over width of the part below the legend, at one column's width; `title` is
    that of the legend.
    """
    labels = [label for _, label in entries]
    columns = legend_columns(labels, style.width, style)
    lines = -(-len(entries) // columns) * max(
        (label.count("\n") + 1 for label in labels), default=1
    )
    lines += bool(title)
    figure = new_figure(style, aspect * min(style.width, 4.5) + lines * 1.35 * style.small / 72)
    axes = panel_axes(figure, (1, 1, 1), 6 if style.width < 5 else 10)
    if entries:
        handles = [handle for handle, _ in entries]
        above: Any = {"ncols": columns, **CLOSE, "title": title or None}
        above["title_fontsize"] = style.small
        figure.legend(handles, labels, loc="outside upper center", **above)
    return figure, axes


def new_figure(style: FigureStyle, height: float) -> Figure:
    """A figure without axes; `height` in inches is that of the drawing, unless the style says."""
    size = (style.width, height + 0.05 if style.height is None else style.height)
    figure = Figure(figsize=size, dpi=style.dpi, layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03)
    return figure


def panel_width(style: FigureStyle, count: int) -> float:
    """Width in inches of each of `count` panels."""
    return (style.width - 0.5) / _across(style, count)


def new_panels(
    style: FigureStyle,
    titles: Sequence[str],
    *,
    aspect: float = 0.8,
    shared: bool = True,
    across: int | None = None,
) -> tuple[Figure, list[Axes]]:
    """Small multiples: a panel a title, `across` in a row; by default two, up to four where wide.

    `aspect` is height over width of a panel. Where `shared`, all have the axes of the first one,
    and only outer ones have numbers.
    """
    across = _across(style, len(titles)) if across is None else across
    rows = -(-len(titles) // across)
    title = max(t.count("\n") + 1 for t in titles) * 1.4 * style.small / 72
    high = aspect * (style.width - 0.5) / across + title
    figure = new_figure(style, rows * high + 0.3)
    panels: list[Axes] = []
    for k, text in enumerate(titles):
        first = panels[0] if shared and panels else None
        axes = panel_axes(figure, (rows, across, k + 1), 3 if across > 1 else 6, first)
        axes.set_title(text, fontsize=style.small, pad=3)
        if shared:
            axes.tick_params(labelleft=k % across == 0, labelbottom=k + across >= len(titles))
        panels.append(axes)
    return figure, panels


def _across(style: FigureStyle, count: int) -> int:
    return min(count, 2 if style.width < 5 else 3 if count in (3, 5, 6) else 4)


def panel_axes(
    figure: Figure, place: tuple[int, int, int], ticks: int, shared: Axes | None = None
) -> Axes:
    """Axes with a faint grid at a place of `add_subplot`, with about so many ticks across."""
    axes = figure.add_subplot(*place, sharex=shared, sharey=shared)
    axes.grid(color="0.9", linewidth=0.5)
    if shared is None:
        axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    return axes
