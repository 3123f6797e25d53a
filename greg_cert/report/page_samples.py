"""The page's lists of the most and the least robust samples of each run."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from greg_cert.report import wording
from greg_cert.report.markup import Html, tag
from greg_cert.report.methods import DECISION, PROBABILISTIC, SMOOTHING, has_smoothing, methods_of
from greg_cert.report.pictures import Pictures, data_uri, pair_of, png_of
from greg_cert.report.results import Results
from greg_cert.report.smoothing import confidence_words

LISTED = 10


def extremes(rows: pd.DataFrame, count: int = LISTED) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples with the largest and those with the smallest certified radius.

    Samples on the wrong side from the start have nothing to certify and are left out; ties are
    broken by the attack radius, then by the index. Each part begins with its most extreme sample.
    """
    kept = rows[rows["status"] != "rejected"]
    keys = ["radius_certified", "radius_attack", "index"]
    most = kept.sort_values(keys, ascending=[False, False, True], kind="stable").head(count)
    return most, kept.sort_values(keys, kind="stable").head(count)


def sample_lists(results: Results, run: str, pictures: Pictures) -> Html:
    """An expandable block with both lists of one run."""
    most, least = extremes(results.of(run))
    rejected = int((~results.kept(run)).sum())
    wrong = wording.wrong_side(results.summary)
    note = f"{wording.count(rejected, 'sample')} {wrong} before any perturbation, not listed."
    return tag(
        "details",
        tag("summary", f"{wording.one_line(run)}: most and least robust samples"),
        tag("p", note, class_="note"),
        tag("h4", "Largest certified radius first"),
        _list(results, run, most, pictures),
        tag("h4", "Smallest certified radius first"),
        _list(results, run, least, pictures),
    )


def _list(results: Results, run: str, rows: pd.DataFrame, pictures: Pictures) -> Html:
    if rows.empty:
        return tag("p", "No sample to list.", class_="note")
    records: list[dict[Any, Any]] = rows.to_dict("records")
    shown = any((run, int(r["index"])) in pictures for r in records)
    titles = ["index", "label", "predicted", "status", "certified (proof)", "Lipschitz (proof)"]
    titles += ["attack (upper bound)", "first order (estimate)"]
    titles += [f"{m.name} ({m.status})" for m in methods_of(results.of(run))]
    if has_smoothing(results.of(run)):
        titles.append(f"smoothed detector ({PROBABILISTIC}, {confidence_words(results.summary)})")
    titles += ["score", "threshold"]
    head = [
        tag("th", title, scope="col", class_="long" if len(title) > 40 else None)
        for title in (["image"] if shown else []) + titles
    ]
    digits = wording.radius_digits([float(results.column(run, "radius_certified").max())])
    body = [_row(results, run, record, pictures, shown, digits) for record in records]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_="samples")
    return tag("div", table, class_="scroll")


def _row(
    results: Results, run: str, r: dict[Any, Any], pictures: Pictures, shown: bool, digits: int
) -> Html:
    radii = ("radius_certified", "radius_lipschitz", "radius_attack", "radius_gradient")
    limit = results.summary.max_radius
    cells = [wording.one_line(str(r[name])) for name in ("index", "label", "predicted", "status")]
    for name in radii:
        value = float(r[name])
        infinite_estimate = math.isinf(value) and name == "radius_gradient"
        cells.append("∞" if infinite_estimate else wording.radius(value, digits, limit))
    of_run = results.of(run)
    cells += [wording.radius(float(r[m.column]), digits, limit) for m in methods_of(of_run)]
    if has_smoothing(of_run):
        cells.append(_smoothed(r, digits))
    cells += [f"{float(r[name]):.4g}" for name in ("score", "threshold")]
    first = [_images(run, int(r["index"]), pictures)] if shown else []
    return tag("tr", first + [tag("td", cell) for cell in cells])


def _smoothed(r: dict[Any, Any], digits: int) -> str:
    """Decision of the smoothed detector, and how far it holds; no radius where it abstained."""
    radius = float(r[SMOOTHING])
    if math.isnan(radius):
        return wording.one_line(str(r[DECISION]))
    return f"{r[DECISION]} to {wording.radius(radius, digits, None)}"


def _images(run: str, index: int, pictures: Pictures) -> Html:
    picture = pictures.get((run, index))
    if picture is None:
        return tag("td", wording.MISSING)
    clean, adversarial = pair_of(picture)
    where = f"({run!r}, {index})"
    images = [_image(png_of(clean, where), f"sample {index}, clean")]
    if adversarial is not None:
        images.append(_image(png_of(adversarial, where), f"sample {index}, adversarial"))
    return tag("td", images, class_="pixels")


def _image(png: bytes, label: str) -> Html:
    return tag("img", src=data_uri(png), alt=label, title=label)
