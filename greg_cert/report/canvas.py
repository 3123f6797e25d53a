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
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from greg_cert.report.results import Results
from greg_cert.report.style import FigureStyle
from greg_cert.report.wording import one_line

Draw = Callable[[Results, FigureStyle], Figure]


@dataclass(frozen=True)
class Rendered:
    """One figure as the bytes of a PNG and of a PDF."""

    png: bytes
    pdf: bytes


def width_of(label: str, style: FigureStyle) -> float:
    """Printed width of a label in the legend's type, in inches."""
    font = FontProperties(family=style.font, size=style.small)
    return float(TextPath((0, 0), label.replace("$", "S"), prop=font).get_extents().width) / 72


def name_limit(style: FigureStyle, runs: Sequence[str], notes: Sequence[str] = ()) -> int:
    """How many characters of a run's name fit one line of the legend, beside the longest note."""
    least = 0.5 * style.small / 72
    letter = max([least, *(width_of(one_line(run), style) / max(len(run), 1) for run in runs)])
    room = style.width - 0.6 - max((width_of(note, style) for note in notes), default=0.0)
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
    height = style.height
    if height is None:
        height = aspect * min(style.width, 4.5) + lines * 1.35 * style.small / 72 + 0.05
    figure = Figure(figsize=(style.width, height), dpi=style.dpi, layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03)
    axes = figure.add_subplot()
    axes.grid(color="0.9", linewidth=0.5)
    axes.xaxis.set_major_locator(
        MaxNLocator(6 if style.width < 5 else 10, steps=[1, 2, 2.5, 5, 10])
    )
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


@contextmanager
def drawn(draw: Draw, results: Results, style: FigureStyle) -> Iterator[Figure]:
    """One figure under its style's settings, which hold until the block ends."""
    rc: Any = style.rc()
    with mpl.rc_context(rc), warnings.catch_warnings():
        # A run's name may hold letters that the font lacks; they print as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing from.*font")
        yield draw(results, style)


def render(draw: Draw, results: Results, style: FigureStyle) -> Rendered:
    """One figure drawn and saved twice, without a date, so that equal results give equal bytes."""
    png, pdf = io.BytesIO(), io.BytesIO()
    with drawn(draw, results, style) as figure:
        FigureCanvasAgg(figure)
        figure.savefig(png, format="png", dpi=style.dpi, metadata={"Software": None})
        FigureCanvasPdf(figure)
        nothing: dict[str, Any] = {"CreationDate": None, "Creator": None, "Producer": None}
        figure.savefig(pdf, format="pdf", dpi=style.dpi, metadata=nothing)
    return Rendered(png.getvalue(), pdf.getvalue())
