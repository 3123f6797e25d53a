"""Figures through matplotlib's objects alone: no display, no global state, reproducible bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from greg_cert.certificates.results import Results
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.wording import one_line

Draw = Callable[[Results, FigureStyle], Figure]


@dataclass(frozen=True)
class Rendered:
    """One figure as the bytes of its files; `svg` is empty where none was asked for."""

    png: bytes
    pdf: bytes
    svg: bytes = b""


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
    """How many characters of a run's name fit one line beside the longest note.

    Args:
        style: the settings.
        runs: the names.
        notes: what stands beside the names.
        room: inches of the line; that of the legend by default.
    """
    least = 0.5 * style.small / 72
    letter = max([least, *(width_of(one_line(run), style) / max(len(run), 1) for run in runs)])
    room = style.width - 0.6 if room is None else room
    room -= max((width_of(note, style) for note in notes), default=0.0)
    return max(10, int(0.97 * room / letter))


def new_axes(
    style: FigureStyle, entries: Sequence[tuple[Any, str]], *, aspect: float = 0.66
) -> tuple[Figure, Axes]:
    """An empty figure whose legend lies above the axes, so that it can hide no data.

    Args:
        style: the settings.
        entries: the legend's handles and labels, in order.
        aspect: height of the part below the legend over the width, at one column's width.

    Returns:
        The figure and its axes.
    """
    longest = max((width_of(label, style) for _, label in entries), default=1.0)
    columns = max(1, min(len(entries), int(style.width / (longest + 4.6 * style.small / 72))))
    lines = -(-len(entries) // columns)
    figure = new_figure(style, aspect * min(style.width, 4.5) + lines * 1.35 * style.small / 72)
    axes = panel_axes(figure, (1, 1, 1), 6 if style.width < 5 else 10)
    if entries:
        handles, labels = zip(*entries, strict=True)
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=columns,
            borderpad=0.1,
            labelspacing=0.25,
            columnspacing=1.2,
        )
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
    above: float = 0.0,
    across: int | None = None,
) -> tuple[Figure, list[Axes]]:
    """Small multiples: a panel a title, two in a row, or up to four on a wide figure.

    Args:
        style: the settings.
        titles: what stands above each panel, with line breaks.
        aspect: height of a panel over its width.
        shared: whether all have the axes of the first one; only outer ones have numbers then.
        above: room in inches that is kept for what stands above each panel beside its title.
        across: panels in a row; by default as above.

    Returns:
        The figure and its panels, in the order of the titles.
    """
    across = _across(style, len(titles)) if across is None else across
    rows = -(-len(titles) // across)
    title = max(t.count("\n") + 1 for t in titles) * 1.4 * style.small / 72
    high = aspect * (style.width - 0.5) / across + title + above
    figure = new_figure(style, rows * high + 0.3)
    panels: list[Axes] = []
    for k, text in enumerate(titles):
        first = panels[0] if shared and panels else None
        axes = panel_axes(figure, (rows, across, k + 1), 3 if across > 1 else 6, first)
        axes.set_title(text, fontsize=style.small, pad=3 + 72 * above)
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


@contextmanager
def drawn(draw: Draw, results: Results, style: FigureStyle) -> Iterator[Figure]:
    """One figure under its style's settings, which hold until the block ends."""
    rc: Any = style.rc()
    with mpl.rc_context(rc), warnings.catch_warnings():
        # A run's name may hold letters that the font lacks; they print as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing from.*font")
        yield draw(results, style)


def render(draw: Draw, results: Results, style: FigureStyle, *, svg: bool = False) -> Rendered:
    """One figure drawn and saved, without a date, so that equal results give equal bytes."""
    files = {kind: io.BytesIO() for kind in ("png", "pdf", "svg")}
    with drawn(draw, results, style) as figure:
        FigureCanvasAgg(figure)
        figure.savefig(files["png"], format="png", dpi=style.dpi, metadata={"Software": None})
        FigureCanvasPdf(figure)
        nothing: dict[str, Any] = {"CreationDate": None, "Creator": None, "Producer": None}
        figure.savefig(files["pdf"], format="pdf", dpi=style.dpi, metadata=nothing)
        if svg:
            FigureCanvasSVG(figure)
            figure.savefig(files["svg"], format="svg", dpi=style.dpi, metadata={"Date": None})
    return Rendered(*(file.getvalue() for file in files.values()))
