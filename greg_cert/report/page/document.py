"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.figures.registry import FIGURES, OOD_FIGURE, SCORE_FIGURE, training_figure
from greg_cert.report.page.css import CSS
from greg_cert.report.page.gallery import Gallery
from greg_cert.report.page.images import data_uri
from greg_cert.report.page.markup import Html, join, tag, text
from greg_cert.report.page.meaning import meaning_block
from greg_cert.report.page.provenance import provenance_block
from greg_cert.report.page.samples import sample_lists, samples_note
from greg_cert.report.page.table import table_block
from greg_cert.report.tables.comparison import Comparison
from greg_cert.report.tables.forms import all_sheets
from greg_cert.report.tables.notes import notes_of, warning
from greg_cert.report.tables.rows import Row
from greg_cert.report.tables.statement import statement

# The browser itself refuses scripts and every outside resource.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_page(
    results: Results,
    rows: list[Row],
    comparisons: list[Comparison],
    figures: Mapping[str, bytes],
    gallery: Gallery,
    *,
    title: str,
) -> str:
    """The whole page.

    Args:
        results: the checked results.
        rows: the table's records.
        comparisons: the runs against the baseline.
        figures: PNG bytes by figure name.
        gallery: sample images, shown in the lists of most and least robust samples.
        title: the page's title.
    """
    alarm = " alarm" if warning(results) else ""
    first, *others = sheets = all_sheets(results, rows, comparisons)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", wording.one_line(title)),
        tag("style", Html(CSS)),
    )
    body = tag(
        "main",
        tag("h1", wording.one_line(title)),
        tag("p", _subtitle(results), class_="sub"),
        [tag("p", note, class_="result caution") for note in notes_of(results)],
        tag("p", statement(results, rows, comparisons), class_="result" + alarm),
        table_block(first),
        meaning_block(results, sheets),
        tag("h2", "Figures"),
        tag("div", _figures(results, figures), class_="figures"),
        [table_block(sheet) for sheet in others],
        tag("h2", "The most and the least robust samples"),
        samples_note(results, gallery),
        [sample_lists(results, run, gallery) for run in results.runs],
        tag("h2", "Provenance"),
        provenance_block(results),
    )
    return join([Html("<!DOCTYPE html>"), tag("html", head, tag("body", body), lang="en")]) + "\n"


def _subtitle(results: Results) -> str:
    summary = results.summary
    return (
        f"{wording.count(len(results.runs), 'run')}, {results.samples} "
        f"{wording.population(summary)}, {wording.norm_name(summary.norm)} norm of raw pixels in "
        f"[0,1], {wording.ball(summary)}"
    )


def _figures(results: Results, figures: Mapping[str, bytes]) -> list[Html]:
    blocks = []
    for spec in (*FIGURES, OOD_FIGURE, SCORE_FIGURE, training_figure({})):
        if spec.name not in figures:
            continue
        words = spec.caption(results.summary)
        image = tag("img", src=data_uri(figures[spec.name]), alt=f"{spec.title}. {words}")
        blocks.append(
            tag(
                "figure",
                tag("h3", spec.title),
                image,
                tag("figcaption", text(words), f" Files: {spec.name}.png, {spec.name}.pdf."),
            )
        )
    return blocks
