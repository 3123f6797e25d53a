"""How the figures look: column width, type size, and colours that survive grey print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.font_manager import get_font_names

from greg_cert.errors import UsageError
from greg_cert.report.paper import ANY_PAPER, Paper
from greg_cert.report.wording import short_names

SINGLE_COLUMN = 3.25
DOUBLE_COLUMN = 6.75
SMALLEST_TYPE = 7.0
MOST_BINS = 30
SERIF = "STIXGeneral"  # comes with matplotlib; its letters are those of Times

PALETTES: dict[str, tuple[str, ...]] = {
    # The first four are Paul Tol's "high contrast" scheme (technical note SRON/EPS/TN/09-002): safe
    # for colour-blind readers, and far apart in grey too. The others are Okabe and Ito's.
    "colour": ("#004488", "#BB5566", "#DDAA33", "#000000", "#009E73", "#56B4E9", "#CC79A7"),
    "grey": ("#000000", "#9A9A9A", "#3A3A3A", "#6A6A6A", "#B4B4B4"),
}
_LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx")
_MARKERS = ("o", "s", "^", "D", "v")


_MOST_DOTS = 20_000  # across a picture


@dataclass(frozen=True)
class FigureStyle:
    """Settings of every figure; sizes in inches and points.

    Attributes:
        width: width of the figure; 3.25 is one column of proceedings, 6.75 the whole page.
        height: height of the figure; by default from the width and the lines of the legend.
        font_size: size of labels; legend and ticks are half a point smaller. At least 7.5.
        font: a family that matplotlib knows, for example "STIXGeneral" to match Times.
        dpi: dots per inch of the PNG.
        bins: number of bins of the histograms; by default as many as their samples bear.
        palette: `colour` or `grey`.
        spans: whether a figure spans both columns of a page, for LaTeX; None: as its width says.
        paper: the page that tables are laid out for, in LaTeX.
        attack: whether the histogram of certified radii shows those of the attack too.
    """

    width: float = SINGLE_COLUMN
    height: float | None = None
    font_size: float = 8.0
    font: str = "DejaVu Sans"
    dpi: int = 300
    bins: int | None = None
    palette: str = "colour"
    spans: bool | None = None
    paper: Paper = ANY_PAPER
    attack: bool = False

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("width", self.width, 2.0, 50.0),
            ("height", 1.5 if self.height is None else self.height, 1.5, 50.0),
            ("font_size", self.font_size, SMALLEST_TYPE + 0.5, 72.0),
            ("dpi", self.dpi, 50, 2400),
            ("bins", 1 if self.bins is None else self.bins, 1, 1000),
        ):
            if not value >= least:
                raise UsageError(f"figure {name}: expected at least {least:g}, but got {value!r}")
            if value > most:
                raise UsageError(f"figure {name}: expected at most {most:g}, but got {value!r}")
        if self.width * self.dpi > _MOST_DOTS:
            raise UsageError(
                f"figure dpi: expected at most {_MOST_DOTS / self.width:.0f} at a width of "
                f"{self.width:g} inches, but got {self.dpi}"
            )
        if self.palette not in PALETTES:
            expected = " or ".join(PALETTES)
            raise UsageError(f"figure palette: expected {expected}, but got {self.palette!r}")
        if self.font not in get_font_names():
            raise UsageError(
                f"figure font: expected a family that matplotlib finds, such as {SERIF} or "
                f"DejaVu Sans, but got {self.font!r}"
            )

    @property
    def wide(self) -> bool:
        """Whether a figure is meant for the whole width of a page of two columns."""
        return self.width > 5.0 if self.spans is None else self.spans

    def bins_of(self, samples: int) -> int:
        """Bins of a histogram: those asked for, else by Rice's rule, and 30 at most."""
        return self.bins or min(MOST_BINS, math.ceil(2 * max(samples, 1) ** (1 / 3)))

    @property
    def small(self) -> float:
        """Size of ticks and legend, in points."""
        return self.font_size - 0.5

    def rc(self) -> dict[str, Any]:
        """The matplotlib settings, for `rc_context`."""
        return {
            # The second one has letters that the first may lack.
            "font.family": list(dict.fromkeys([self.font, "DejaVu Sans"])),
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
            "svg.hashsalt": "greg-cert",  # equal figures give equal bytes
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
    fill: float  # opacity of the marker's inside

    @property
    def points(self) -> dict[str, Any]:
        """How `plot` draws the points of a cloud."""
        return {
            "marker": self.marker,
            "linestyle": "",
            "color": self.colour,
            "markersize": 2.8,
            "markeredgewidth": 0.5,
            "markeredgecolor": (self.colour, 0.8),
            "markerfacecolor": (self.colour, self.fill),
        }


def run_styles(runs: Sequence[str], limit: int, palette: str = "colour") -> dict[str, RunStyle]:
    """A style for each run, the names cut to `limit` characters and safe to draw."""
    names, colours = short_names(runs, limit), PALETTES[palette]
    return {
        run: RunStyle(
            name=drawable(names[run]),
            colour=colours[k % len(colours)],
            line=_LINES[k % len(_LINES)],
            hatch=_HATCHES[k % len(_HATCHES)],
            marker=_MARKERS[k % len(_MARKERS)],
            fill=0.5 if k % 2 else 0.0,  # hollow beside solid is told apart in grey
        )
        for k, run in enumerate(runs)
    }


def drawable(name: str) -> str:
    """A name as matplotlib draws it letter by letter."""
    # A dollar sign starts mathematics, and a leading underscore hides a legend entry.
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
