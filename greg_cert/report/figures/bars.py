"""Histograms as outlines that lie over one another, some of them filled."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from greg_cert.report.figures.style import RunStyle


def bars_key(look: RunStyle, fill: float) -> Patch:
    """The legend's sign of a histogram; `fill` is the opacity of its inside, 0 for none."""
    return Patch(
        facecolor=(look.colour, fill),
        edgecolor=look.colour,
        hatch=look.hatch if fill else None,
        linestyle=look.line,
        linewidth=1.1,
    )


def draw_bars(
    axes: Axes,
    heights: np.ndarray,
    edges: np.ndarray,
    look: RunStyle,
    fill: float,
    *,
    linewidth: float,
) -> None:
    """One histogram; `fill` as for `bars_key`."""
    if fill:
        axes.stairs(
            *(heights, edges),
            fill=True,
            facecolor=(look.colour, fill),
            edgecolor=(look.colour, 0.45),
            hatch=look.hatch,
            linewidth=0,
        )
    axes.stairs(heights, edges, color=look.colour, linestyle=look.line, linewidth=linewidth)
