"""Column widths and type of common proceedings, so that a figure is printed at its own size.

Widths are those of the LaTeX class or style file, in inches: `text` is its text width, `column`
that of one column, (text - gap) / 2 where there are two. A figure of that width is not scaled, and
its type keeps its size.
"""

from __future__ import annotations

from dataclasses import dataclass

from greg_cert.errors import UsageError
from greg_cert.report.figures.style import DOUBLE_COLUMN, SERIF, FigureStyle
from greg_cert.report.paper import ANY_PAPER, POINTS, Paper

_CM = 2.54


@dataclass(frozen=True)
class Venue(Paper):
    """One layout: its widths, and the type of figures."""

    font: str = SERIF  # near that of the text
    font_size: float = 8.0  # points; that of the captions or a little smaller


# icml2024.sty: 6.75in, columnsep 0.25in; Times. AISTATS took its layout from there.
_ICML = Venue(6.75, 0.25)
# cvpr.sty (author kit of CVPR, ICCV, WACV and 3DV): 6.875in, columnsep 0.3125in; Times.
_CVPR = Venue(6.875, 0.3125)
# llncs.cls: 12.2cm; Computer Modern, which STIX is nearest to.
_LNCS = Venue(12.2 / _CM, None)

VENUES: dict[str, Venue] = {
    # neurips_2023.sty and iclr2024_conference.sty: 5.5in; Times.
    "neurips": Venue(5.5, None),
    "iclr": Venue(5.5, None),
    "icml": _ICML,
    "aistats": _ICML,
    "cvpr": _CVPR,
    "iccv": _CVPR,
    "wacv": _CVPR,
    "eccv": _LNCS,
    "lncs": _LNCS,
    # aaai24.sty: 7in, columnsep 0.375in; Times; no type of tables below 9 pt.
    "aaai": Venue(7.0, 0.375, smallest=9.0),
    # acmart.cls, sigconf: letter paper less 54pt on both sides, columnsep 2pc; Libertine 9 pt.
    "acm": Venue((8.5 * POINTS - 108) / POINTS, 24 / POINTS, font_size=7.5),
    # IEEEtran.cls: 43pc of text, columns of 21pc, journal and conference alike; Times.
    "ieee": Venue(516 / POINTS, 12 / POINTS),
    # jmlr2e.sty: 6in; 11 pt Computer Modern.
    "jmlr": Venue(6.0, None, font_size=9.0),
    # tmlr.sty: 6.5in; Computer Modern Bright, without serifs.
    "tmlr": Venue(6.5, None, font="DejaVu Sans"),
    # acl.sty: 16cm, columnsep 0.6cm; Times.
    "acl": Venue(16 / _CM, 0.6 / _CM),
    # usenix-2020-09.sty: 7in, columnsep 0.33in; Times.
    "usenix": Venue(7.0, 0.33),
}
"""The layouts by name."""


def venue_style(
    name: str | None = None,
    columns: int | None = None,
    *,
    width: float | None = None,
    font_size: float | None = None,
    font: str | None = None,
    dpi: int = 300,
    bins: int | None = None,
    palette: str = "colour",
    attack: bool = False,
) -> FigureStyle:
    """The style of figures for one venue; fields of `FigureStyle` given beside it override it.

    `name` is one of `VENUES`, in any case, or None for one column of 3.25 inches; `columns` is how
    many columns a figure spans, 1 by default.

    Raises:
        UsageError: for a venue that is not known, or more columns than its page has.
    """
    if columns not in (None, 1, 2):
        raise UsageError(f"--columns: expected 1 or 2, but got {columns}")
    if name is None:
        found = Venue(DOUBLE_COLUMN, 0.25, font=FigureStyle.font, font_size=FigureStyle.font_size)
        spans = None if columns is None else columns == 2
    else:
        key = name.lower()
        if key not in VENUES:
            raise UsageError(f"--venue: expected one of {', '.join(VENUES)}, but got {name!r}")
        found = VENUES[key]
        if columns == 2 and found.gap is None:
            raise UsageError(f"--columns: expected 1 for {key}, whose page has one, but got 2")
        spans = columns == 2
    chosen = found.text if columns == 2 else found.column
    return FigureStyle(
        width=chosen if width is None else width,
        font_size=found.font_size if font_size is None else font_size,
        font=found.font if font is None else font,
        dpi=dpi,
        bins=bins,
        palette=palette,
        attack=attack,
        spans=spans,
        paper=ANY_PAPER if name is None else found,
    )
