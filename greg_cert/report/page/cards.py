"""The page's cards: one sample's image, its nearest attack, their difference, and its numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.page.gallery import Shown
from greg_cert.report.page.images import amplified, data_uri, outside, png_of
from greg_cert.report.page.markup import Html, tag


def card(results: Results, row: dict[Any, Any], shown: Shown | None, digits: int) -> Html:
    """One sample: three pictures where there are three, then what is proven and what was found.

    Args:
        results: the checked results.
        row: the sample's row of the table of certificates.
        shown: its pictures, or None.
        digits: decimals of radii.
    """
    index = int(row["index"])
    facts = [
        part for key, value in _facts(results, row, shown, digits) for part in _pair(key, value)
    ]
    return tag(
        "article",
        tag("h5", f"Sample {index}"),
        tag("p", "No picture was kept.", class_="note") if shown is None else _strip(index, shown),
        tag("dl", facts),
        [tag("p", remark, class_="note") for remark in _remarks(results, row, shown, digits)],
        class_="sample",
    )


def _pair(key: str, value: str) -> tuple[Html, Html]:
    return tag("dt", key), tag("dd", value)


def _strip(index: int, shown: Shown) -> Html:
    """The pictures side by side, each with what it is."""
    images = [(shown.clean, "clean")]
    if shown.attacked is not None:
        images.append((shown.attacked, "attacked"))
        difference, factor = amplified(shown.attacked - shown.clean)
        images.append((difference, f"change \u00d7 {factor:g}"))
    figures = []
    for array, title in images:
        png = png_of(np.asarray(array), f"{index}, {title}")
        image = tag("img", src=data_uri(png), alt=f"sample {index}, {title}")
        figures.append(tag("figure", image, tag("figcaption", title)))
    return tag("div", figures, class_="strip")


def _facts(
    results: Results, row: dict[Any, Any], shown: Shown | None, digits: int
) -> list[tuple[str, str]]:
    summary = results.summary
    limit = summary.max_radius
    facts = []
    ood = str(row.get("dataset", "")) != ""
    if not ood:
        facts.append(("class", wording.class_name(summary, row["label"])))
    if "predicted" in row:
        facts.append(("predicted", wording.class_name(summary, row["predicted"])))
    proven = float(row["radius_certified"])
    facts.append(
        ("certified, proof", wording.radius(proven, digits, limit) if proven else "nothing proven")
    )
    attack = wording.radius(float(row["radius_attack"]), digits, limit)
    facts.append(("attack, upper bound", attack))
    score, gamma = float(row["score"]), float(row["threshold"])
    after = None if shown is None else shown.score
    facts += [("threshold", f"{gamma:#.4g}"), ("score", f"{score:#.4g}")]
    if after is not None and shown is not None and shown.predicted is not None:
        decision = "rejected" if after > gamma else "accepted"
        name = wording.class_name(summary, shown.predicted)
        facts.append(("score, attacked", f"{after:#.4g}"))
        facts.append(("then", f"{decision}, predicted {name}"))
    return facts


def _remarks(results: Results, row: dict[Any, Any], shown: Shown | None, digits: int) -> list[str]:
    """What the pictures do not show by themselves."""
    remarks: list[str] = []
    if shown is None:
        return remarks
    if shown.attacked is None:
        if shown.searched or math.isinf(float(row["radius_attack"])):
            limit = results.summary.max_radius
            words = "" if limit is None else f" within {limit:g}"
            remarks.append(f"No attack found{words}, so there is none to show.")
        return remarks
    changed = outside(shown.attacked)
    if changed:
        low, high = float(shown.attacked.min()), float(shown.attacked.max())
        remarks.append(
            f"Clipped for display: {changed} of {shown.attacked.size} values lie outside [0,1] "
            f"({low:.3f} to {high:.3f}), as the ball allows."
        )
    return remarks
