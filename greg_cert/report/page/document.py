"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from greg_cert.certificates.methods import ESTIMATE, PROBABILISTIC, PROOF, UPPER
from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.figures.registry import FigureSpec
from greg_cert.report.page.pictures import Key, Shown, data_uri
from greg_cert.report.page.provenance import UNKNOWN, training_facts, verification_facts
from greg_cert.report.page.samples import sample_lists
from greg_cert.report.tables.comparison import Comparison
from greg_cert.report.tables.forms import all_sheets
from greg_cert.report.tables.notes import notes_of, warning
from greg_cert.report.tables.sheets import CHECK, COUNT, LOWER, MEASURED
from greg_cert.report.tables.smoothing import confidence_words
from greg_cert.report.tables.statement import statement


def html_page(
    results: Results,
    comparisons: list[Comparison],
    figures: Sequence[tuple[FigureSpec, bytes]],
    pictures: Mapping[Key, Shown],
    *,
    title: str,
    columns: Sequence[str] = (),
) -> str:
    """The whole page; `figures` come with their PNG bytes, `pictures` show the listed samples.

    `columns` are those of the tables, all where there are none.
    """
    summary = results.summary
    return _PAGES.get_template("page.html.jinja").render(
        title=title,
        subtitle=f"{wording.count(len(results.runs), 'run')}, {results.samples} "
        f"{wording.population(summary)}, {wording.norm_name(summary.norm)} norm of raw pixels in "
        f"[0,1], {wording.ball(summary)}",
        notes=notes_of(results),
        alarm=warning(results) is not None,
        statement=statement(results, comparisons),
        sheets=all_sheets(results, comparisons, columns),
        meanings=_meanings(results),
        figures=[(spec, spec.caption(summary), png) for spec, png in figures],
        pictured=bool(pictures),
        wrong=wording.wrong_side(summary),
        sample_lists=[sample_lists(results, run, pictures) for run in results.runs],
        verification=verification_facts(results),
        training={run: training_facts(results, run) for run in results.runs},
    )


def _meanings(results: Results) -> dict[str, str]:
    """What each kind of number proves."""
    proof = (
        f"the sample stays {wording.right_side(results.summary)} (an OOD one: rejected) at every "
        "point of the ball of that radius, whatever the perturbation. It is about this network, "
        "this threshold and this sample."
    )
    if warning(results) is not None:
        proof = "an attack contradicts some of these here, so none of them is to be relied on."
    return {
        PROOF: proof,
        PROBABILISTIC: "the same, but of another, smoothed detector, and with "
        f"{confidence_words(results.summary)} for each sample.",
        UPPER: "an attack succeeded at that distance, so the true radius is no larger; a "
        "better attack may come closer.",
        LOWER: "attacks achieved that much, so the true rate is no smaller.",
        ESTIMATE: "no proof. A perturbation within such a radius may well change the decision.",
        MEASURED: "counted on test samples without any perturbation; no claim about other data.",
        CHECK: "how proofs, attacks and estimates fit each other. Violations have to be 0.",
    }


def _visible(value: Any) -> Any:
    r"""A value to be shown; control characters of a text but line ends are spelled, as in \u202e.

    They would be lost, or turn the order of what stands beside them.
    """
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else _spelled(c) for c in value)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


_PAGES = Environment(
    loader=PackageLoader("greg_cert.report", "page"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_visible,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters |= {"data_uri": data_uri, "one_line": wording.one_line}
_PAGES.globals |= {"COUNT": COUNT, "MEASURED": MEASURED, "UNKNOWN": UNKNOWN}
