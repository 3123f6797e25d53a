"""The page's lines on what each kind of number proves, for the kinds that it has."""

from __future__ import annotations

from collections.abc import Sequence

from greg_cert.certificates.results import Results
from greg_cert.report.page.markup import Html, tag
from greg_cert.report.tables.notes import warning
from greg_cert.report.tables.sheets import Sheet
from greg_cert.report.tables.smoothing import confidence_words


def meaning_block(results: Results, sheets: Sequence[Sheet]) -> Html:
    """One line for each status that the columns of these tables have."""
    here = {head.status for sheet in sheets for head in sheet.heads}
    lines = [
        part
        for status, words in _words(results).items()
        if status in here
        for part in (tag("dt", status), tag("dd", words))
    ]
    return tag("section", tag("h2", "What these numbers prove"), tag("dl", lines, class_="kinds"))


def _words(results: Results) -> dict[str, str]:
    summary = results.summary
    stays = "accepted as ID" if summary.side == "id" else "rejected as OOD"
    if summary.correct:
        stays += " and correctly classified"
    proof = (
        f"the sample stays {stays} (an OOD one: rejected) at every point of the ball of that "
        "radius, whatever the perturbation. It is about this network, this threshold and this "
        "sample."
    )
    if warning(results) is not None:
        proof = "an attack contradicts some of these here, so none of them is to be relied on."
    sure = confidence_words(summary)
    smoothed = f"the same, but of another, smoothed detector, and with {sure} for each sample."
    return {
        "proof": proof,
        "probabilistic proof": smoothed,
        "upper bound": "an attack succeeded at that distance, so the true radius is no larger; a "
        "better attack may come closer.",
        "lower bound": "attacks achieved that much, so the true rate is no smaller.",
        "estimate": "no proof. A perturbation within such a radius may well change the decision.",
        "measured": "counted on test samples without any perturbation; no claim about other data.",
        "check": "how proofs, attacks and estimates fit each other. Violations have to be 0.",
    }
