"""Figures drawn and saved without display, global state or dates: equal inputs, equal bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from greg_cert.report.figures.style import FigureStyle

Draw = Callable[[FigureStyle], Figure]


@dataclass(frozen=True)
class Rendered:
    """One figure as the bytes of its files; `svg` is empty where none was asked for."""

    png: bytes
    pdf: bytes
    svg: bytes = b""


@contextmanager
def drawn(draw: Draw, style: FigureStyle) -> Iterator[Figure]:
    """One figure under its style's settings, which hold until the block ends."""
    rc: Any = style.rc()
    with mpl.rc_context(rc), warnings.catch_warnings():
        # A run's name may hold letters that the font lacks; they print as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing from.*font")
        yield draw(style)


def render(draw: Draw, style: FigureStyle, *, svg: bool = False) -> Rendered:
    """One figure drawn and saved, without a date."""
    files = {kind: io.BytesIO() for kind in ("png", "pdf", "svg")}
    with drawn(draw, style) as figure:
        FigureCanvasAgg(figure)
        figure.savefig(files["png"], format="png", dpi=style.dpi, metadata={"Software": None})
        FigureCanvasPdf(figure)
        nothing: dict[str, Any] = {"CreationDate": None, "Creator": None, "Producer": None}
        figure.savefig(files["pdf"], format="pdf", dpi=style.dpi, metadata=nothing)
        if svg:
            FigureCanvasSVG(figure)
            figure.savefig(files["svg"], format="svg", dpi=style.dpi, metadata={"Date": None})
    return Rendered(*(file.getvalue() for file in files.values()))
