"""The figures as LaTeX floats, with captions that say what is proof, upper bound and estimate."""

from __future__ import annotations

import re
from collections.abc import Sequence

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.figures.registry import FigureSpec
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.latex.text import escape_tex
from greg_cert.report.tables.columns import certified_words
from greg_cert.report.tables.notes import beside_every_table
from greg_cert.report.tables.setting import seed_words, threshold_words

FOLDER = r"\gregcertfigures"
_HEAD = rf"""% Needs \usepackage{{graphicx}}. The pictures lie in the folder {FOLDER},
% by default that of the paper; say another before \input: \newcommand{{{FOLDER}}}{{path/to/report}}
\providecommand{{{FOLDER}}}{{.}}
"""


def latex_figures(results: Results, specs: Sequence[FigureSpec], style: FigureStyle) -> str:
    """A float a figure, at the width that it was drawn for; `figure*` where that is two columns."""
    captions = full_captions(results, specs)
    floats = (_float(spec, text, style) for spec, text in zip(specs, captions, strict=True))
    return _HEAD + "".join("\n" + text for text in floats)


def full_captions(results: Results, specs: Sequence[FigureSpec]) -> list[str]:
    """Captions with all that a reader needs who sees nothing else of the report, plain text."""
    notes, setting = beside_every_table(results), [_setting(results)]
    return [
        " ".join(
            [
                *(f"{spec.title}.", spec.caption(results.summary)),
                *(setting if spec.of_samples else []),
                *notes,
            ]
        )
        for spec in specs
    ]


def _setting(results: Results) -> str:
    summary = results.summary
    scores = wording.score_names(summary)
    score = f"scores: {scores}" if summary.several_scores else f"{scores} score"
    words = (
        f"Radii in the {wording.norm_name(summary.norm)} norm of raw pixels in [0,1]; "
        f"{score}; n = {results.samples} "
        f"{wording.population(summary)}{' a run' if len(results.runs) > 1 else ''}. "
        f"{certified_words(summary)} {threshold_words(results)}"
    )
    return f"{words} {seeds}" if (seeds := seed_words(results)) else words


def _float(spec: FigureSpec, caption: str, style: FigureStyle) -> str:
    environment = "figure*" if style.wide else "figure"
    width = f"{style.width:.4f}".rstrip("0").rstrip(".")
    label = re.sub(r"[^a-z0-9]+", "-", spec.name.lower())
    return rf"""\begin{{{environment}}}[t]
\centering\sloppy
\includegraphics[width={width}in]{{{FOLDER}/{spec.name}.pdf}}
\caption{{{escape_tex(caption)}}}
\label{{fig:{label}}}
\end{{{environment}}}
"""
