"""Reports of a verification: tables, figures and one page, from two files and without torch.

Names are resolved on first use: tables are made without the library that draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from greg_cert.certificates.merge.join import Merged, merge_verifications
from greg_cert.certificates.results import Results, load_results

if TYPE_CHECKING:
    from greg_cert.report.figures.style import DOUBLE_COLUMN, SINGLE_COLUMN, FigureStyle
    from greg_cert.report.figures.venues import VENUES, venue_style
    from greg_cert.report.tables.forms import summary_table
    from greg_cert.report.write import FigureFiles, ReportFiles, write_figures, write_report

__all__ = [
    "DOUBLE_COLUMN",
    "SINGLE_COLUMN",
    "VENUES",
    "FigureFiles",
    "FigureStyle",
    "Merged",
    "ReportFiles",
    "Results",
    "load_results",
    "merge_verifications",
    "summary_table",
    "venue_style",
    "write_figures",
    "write_report",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "figures.style": ["DOUBLE_COLUMN", "SINGLE_COLUMN", "FigureStyle"],
        "figures.venues": ["VENUES", "venue_style"],
        "tables.forms": ["summary_table"],
        "write": ["FigureFiles", "ReportFiles", "write_figures", "write_report"],
    },
)
