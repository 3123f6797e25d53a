"""The page's lists of the most and the least robust samples of each run."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from greg_cert.certificates.method_columns import (
    DECISION,
    SMOOTHING,
    has_smoothing,
    methods_of,
)
from greg_cert.certificates.methods import PROBABILISTIC
from greg_cert.certificates.results import Results
from greg_cert.certificates.robust_samples import LISTED, OOD_LISTED, most_and_least_robust
from greg_cert.report import wording
from greg_cert.report.page.cards import card
from greg_cert.report.page.gallery import Gallery
from greg_cert.report.page.markup import Html, tag
from greg_cert.report.tables.smoothing import confidence_words


def samples_note(results: Results, gallery: Gallery) -> Html | None:
    """How to read the pictures; None where there are none."""
    if not gallery:
        return None
    wrong = "rejected" if results.summary.side == "id" else "accepted as ID"
    if results.summary.correct:
        wrong += " or misclassified"
    return tag(
        "p",
        f"Attacked: the nearest image that an attack found to be {wrong} (of OOD sets: accepted "
        "as ID). A smaller perturbation may exist, down to the certified radius, but none below "
        "it. Change: attacked less clean, times the factor named; grey is none.",
        class_="note",
    )


def sample_lists(results: Results, run: str, gallery: Gallery) -> Html:
    """Both lists of one run, and those of its OOD sets where there are pictures of them."""
    own = results.of(run)
    rejected = int((~results.kept(run)).sum())
    wrong = wording.wrong_side(results.summary)
    note = f"{wording.count(rejected, 'sample')} {wrong} before any perturbation, not listed."
    return tag(
        "section",
        tag("h3", wording.one_line(run)),
        tag("p", note, class_="note"),
        _both(results, run, own.assign(dataset=""), LISTED, gallery),
        [
            _ood_list(results, run, dataset, rows, gallery)
            for dataset in results.ood_sets(run)
            if any(key[:2] == (run, dataset) for key in gallery)
            if (rows := results.ood_of(run, dataset)) is not None
        ],
    )


def _ood_list(
    results: Results, run: str, dataset: str, rows: pd.DataFrame, gallery: Gallery
) -> Html:
    accepted = int((rows["status"] == "rejected").sum())
    note = (
        f"{wording.count(accepted, 'sample')} accepted as ID before any perturbation, not listed."
    )
    return tag(
        "details",
        tag("summary", f"{wording.one_line(run)}: OOD samples of {wording.one_line(dataset)}"),
        tag("p", note, class_="note"),
        _both(results, run, rows, OOD_LISTED, gallery),
    )


def _both(results: Results, run: str, rows: pd.DataFrame, count: int, gallery: Gallery) -> Html:
    """The most robust samples, then the least; as cards where there are pictures."""
    titles = ("Most robust: largest certified radius first", "Least robust: smallest first")
    cards: list[Html] = []
    tables: list[Html] = []
    for title, part in zip(titles, most_and_least_robust(rows, count), strict=True):
        cards += [tag("h4", title), _cards(results, run, part, gallery)]
        tables += [tag("h5", title), _table(results, run, part)]
    keys = {key for key in gallery if key[0] == run}
    if any(
        (run, str(d), int(i)) in keys for d, i in zip(rows["dataset"], rows["index"], strict=True)
    ):
        return tag("div", cards, tag("details", tag("summary", "All their numbers"), tables))
    name = f"{wording.one_line(run)}: most and least robust samples"
    return tag("details", tag("summary", name), tables)


def _digits(results: Results, run: str, rows: pd.DataFrame) -> int:
    return wording.radius_digits(
        [
            float(results.column(run, "radius_certified").max()),
            float(rows["radius_certified"].max()),
        ]
    )


def _cards(results: Results, run: str, rows: pd.DataFrame, gallery: Gallery) -> Html:
    if rows.empty:
        return tag("p", "No sample to list.", class_="note")
    digits = _digits(results, run, rows)
    cards = [
        card(results, row, gallery.get((run, str(row["dataset"]), int(row["index"]))), digits)
        for row in rows.to_dict("records")
    ]
    # A part that scrolls has to be reached by the keyboard too.
    return tag("div", cards, class_="scroll cards", tabindex=0, role="group", aria_label="samples")


def _table(results: Results, run: str, rows: pd.DataFrame) -> Html:
    if rows.empty:
        return tag("p", "No sample to list.", class_="note")
    titles = ["index", "class", "predicted", "status", "certified (proof)", "Lipschitz (proof)"]
    titles += ["attack (upper bound)", "first order (estimate)"]
    titles += [f"{m.title} ({m.status})" for m in methods_of(rows)]
    if has_smoothing(rows):
        titles.append(f"smoothed detector ({PROBABILISTIC}, {confidence_words(results.summary)})")
    titles += ["score", "threshold"]
    head = [
        tag("th", title, scope="col", class_="long" if len(title) > 40 else None)
        for title in titles
    ]
    digits = _digits(results, run, rows)
    body = [_row(results, rows, record, digits) for record in rows.to_dict("records")]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_="samples")
    return tag("div", table, class_="scroll", tabindex=0, role="group", aria_label="numbers")


def _row(results: Results, rows: pd.DataFrame, r: dict[Any, Any], digits: int) -> Html:
    summary = results.summary
    limit = summary.max_radius
    cells = [str(int(r["index"]))]
    cells.append(wording.MISSING if r["dataset"] else wording.class_name(summary, r["label"]))
    cells.append(wording.class_name(summary, r.get("predicted", wording.MISSING)))
    cells.append(wording.one_line(str(r["status"])))
    for name in ("radius_certified", "radius_lipschitz", "radius_attack", "radius_gradient"):
        value = float(r.get(name, math.nan))
        infinite_estimate = math.isinf(value) and name == "radius_gradient"
        cells.append("∞" if infinite_estimate else wording.radius(value, digits, limit))
    cells += [wording.radius(float(r[m.column]), digits, limit) for m in methods_of(rows)]
    if has_smoothing(rows):
        cells.append(_smoothed(r, digits))
    cells += [f"{float(r[name]):.4g}" for name in ("score", "threshold")]
    return tag("tr", [tag("td", cell) for cell in cells])


def _smoothed(r: dict[Any, Any], digits: int) -> str:
    """Decision of the smoothed detector, and how far it holds; no radius where it has none."""
    radius = float(r[SMOOTHING])
    if math.isnan(radius) or radius == 0:
        return wording.one_line(str(r[DECISION]))
    return f"{r[DECISION]} to {wording.radius(radius, digits, None)}"
