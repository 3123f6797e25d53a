"""How the figures look: column width, type size, and colours that survive grey print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from greg_cert.errors import UsageError
from greg_cert.report.wording import short_names

SINGLE_COLUMN = 3.25
DOUBLE_COLUMN = 6.75
SMALLEST_TYPE = 7.0

# Okabe and Ito's palette, darkest contrasts first; yellow is too pale for lines on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx")
_MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class FigureStyle:
    """Settings of every figure; sizes in inches and points.

    Attributes:
        width: width of the figure; 3.25 is one column of proceedings, 6.75 the whole page.
        height: height of the figure; by default from the width and the lines of the legend.
        font_size: size of labels; legend and ticks are half a point smaller. At least 7.5.
        font: a family that matplotlib knows, for example "STIXGeneral" to match Times.
        dpi: dots per inch of the PNG.
        bins: number of bins of the histogram.
    """

    width: float = SINGLE_COLUMN
    height: float | None = None
    font_size: float = 8.0
    font: str = "DejaVu Sans"
    dpi: int = 300
    bins: int = 30

    def __post_init__(self) -> None:
        for name, value, least in (
            ("width", self.width, 2.0),
            ("height", self.height if self.height is not None else 1.5, 1.5),
            ("font_size", self.font_size, SMALLEST_TYPE + 0.5),
            ("dpi", self.dpi, 50),
            ("bins", self.bins, 1),
        ):
            if not value >= least:
                raise UsageError(f"figure {name}: expected at least {least:g}, but got {value!r}")

    @property
    def small(self) -> float:
        """Size of ticks and legend, in points."""
        return self.font_size - 0.5

    def rc(self) -> dict[str, Any]:
        """The matplotlib settings, for `rc_context`."""
        return {
            "font.family": self.font,
            "font.size": self.font_size,
            "mathtext.fontset": "stix" if self.font.startswith("STIX") else "dejavusans",
            "axes.labelsize": self.font_size,
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "xtick.labelsize": self.small,
            "ytick.labelsize": self.small,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "legend.fontsize": self.small,
            "legend.frameon": False,
            "legend.handlelength": 2.4,
            "hatch.linewidth": 0.5,
            "lines.linewidth": 1.3,
            "pdf.fonttype": 42,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
        }


@dataclass(frozen=True)
class RunStyle:
    """What tells one run from the others, by colour and without it."""

    name: str
    colour: str
    line: Any
    hatch: str
    marker: str


def run_styles(runs: Sequence[str], limit: int) -> dict[str, RunStyle]:
    """A style for each run, the names cut to `limit` characters and safe to draw."""
    names = short_names(runs, limit)
    return {
        run: RunStyle(
            name=_drawable(names[run]),
            colour=_COLOURS[k % len(_COLOURS)],
            line=_LINES[k % len(_LINES)],
            hatch=_HATCHES[k % len(_HATCHES)],
            marker=_MARKERS[k % len(_MARKERS)],
        )
        for k, run in enumerate(runs)
    }


def _drawable(name: str) -> str:
    # A dollar sign starts mathematics, and a leading underscore hides a legend entry.
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
