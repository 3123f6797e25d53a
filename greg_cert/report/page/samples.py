"""The page's lists of the most and the least robust samples of each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from greg_cert.certificates.method_columns import DECISION, SMOOTHING, has_smoothing, methods_of
from greg_cert.certificates.methods import ESTIMATE, PROBABILISTIC, PROOF, UPPER
from greg_cert.certificates.results import Results
from greg_cert.certificates.robust_samples import LISTED, OOD_LISTED, most_and_least_robust
from greg_cert.report import wording
from greg_cert.report.page.pictures import Key, Shown, amplified, outside, png_of
from greg_cert.report.tables.smoothing import confidence_words

Record = dict[Any, Any]  # a row of the table of certificates


@dataclass(frozen=True)
class Card:
    """One sample: PNGs by what they show, what is proven and was found, and a remark."""

    index: int
    images: dict[str, bytes]
    facts: dict[str, str]
    remark: str


@dataclass(frozen=True)
class Part:
    """The most robust samples or the least: a card each, and a table of their numbers."""

    title: str
    cards: list[Card]
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Lists:
    """Both parts of one run, on the ID samples or on one OOD set."""

    run: str
    dataset: str  # the OOD set; empty for the ID samples
    left_out: str  # how many samples have nothing to be listed for
    pictured: bool  # whether any of the samples has a picture; cards are shown then
    parts: list[Part]


def sample_lists(
    results: Results, run: str, pictures: Mapping[Key, Shown]
) -> tuple[Lists, list[Lists]]:
    """The lists of one run, and those of its OOD sets where there are pictures of them."""
    wrong = wording.wrong_side(results.summary)
    id_rows = results.of(run).assign(dataset="")
    return _lists(results, id_rows, pictures, LISTED, wrong), [
        _lists(results, rows, pictures, OOD_LISTED, "accepted as ID")
        for dataset in results.ood_sets(run)
        if any(key[:2] == (run, dataset) for key in pictures)
        if (rows := results.ood_of(run, dataset)) is not None
    ]


def _lists(
    results: Results, rows: pd.DataFrame, pictures: Mapping[Key, Shown], count: int, wrong: str
) -> Lists:
    run, dataset = str(rows["run"].iloc[0]), str(rows["dataset"].iloc[0])
    certified = (results.column(run, "radius_certified").max(), rows["radius_certified"].max())
    digits = wording.radius_digits([*map(float, certified)])
    left_out = wording.count(int((rows["status"] == "rejected").sum()), "sample")
    titles = ("Most robust: largest certified radius first", "Least robust: smallest first")
    return Lists(
        run=run,
        dataset=dataset,
        left_out=f"{left_out} {wrong} before any perturbation, not listed.",
        pictured=any((run, dataset, int(index)) in pictures for index in rows["index"]),
        parts=[
            _part(results, title, listed, pictures, digits)
            for title, listed in zip(titles, most_and_least_robust(rows, count), strict=True)
        ],
    )


def _part(
    results: Results, title: str, rows: pd.DataFrame, pictures: Mapping[Key, Shown], digits: int
) -> Part:
    records = rows.to_dict("records")
    columns = _columns(results, rows, digits)
    shown = [pictures.get((str(r["run"]), str(r["dataset"]), int(r["index"]))) for r in records]
    return Part(
        title,
        [_card(results, r, s, digits) for r, s in zip(records, shown, strict=True)],
        list(columns),
        [[cell(r) for cell in columns.values()] for r in records],
    )


def _columns(
    results: Results, rows: pd.DataFrame, digits: int
) -> dict[str, Callable[[Record], str]]:
    """The columns of the table of numbers: the text of a cell by the column's title."""
    summary = results.summary

    def radius(column: str) -> Callable[[Record], str]:
        return lambda r: wording.radius(float(r.get(column, math.nan)), digits, summary.max_radius)

    def number(column: str) -> Callable[[Record], str]:
        return lambda r: wording.number(float(r[column]), ".4g")

    def first_order(r: Record) -> str:
        infinite = math.isinf(float(r.get("radius_gradient", math.nan)))
        return "∞" if infinite else radius("radius_gradient")(r)

    def smoothed(r: Record) -> str:
        """The decision, and how far it holds; no radius where it has none."""
        held = float(r[SMOOTHING])
        if math.isnan(held) or held == 0:
            return wording.one_line(str(r[DECISION]))
        return f"{r[DECISION]} to {wording.radius(held, digits, None)}"

    def name(label: object) -> str:
        return wording.class_name(summary, label)

    columns: dict[str, Callable[[Record], str]] = {
        "index": lambda r: str(int(r["index"])),
        "class": lambda r: wording.MISSING if r["dataset"] else name(r["label"]),
        "predicted": lambda r: name(r.get("predicted", wording.MISSING)),
        "status": lambda r: wording.one_line(str(r["status"])),
        f"certified ({PROOF})": radius("radius_certified"),
        f"Lipschitz ({PROOF})": radius("radius_lipschitz"),
        f"attack ({UPPER})": radius("radius_attack"),
        f"first order ({ESTIMATE})": first_order,
        **{f"{m.title} ({m.status})": radius(m.column) for m in methods_of(rows)},
    }
    if has_smoothing(rows):
        columns[f"smoothed detector ({PROBABILISTIC}, {confidence_words(summary)})"] = smoothed
    return columns | {"score": number("score"), "threshold": number("threshold")}


def _card(results: Results, row: Record, shown: Shown | None, digits: int) -> Card:
    summary = results.summary
    proven, attack = float(row["radius_certified"]), float(row["radius_attack"])
    score, gamma = float(row["score"]), float(row["threshold"])
    facts = {} if row["dataset"] else {"class": wording.class_name(summary, row["label"])}
    if "predicted" in row:
        facts["predicted"] = wording.class_name(summary, row["predicted"])
    found = wording.radius(proven, digits, summary.max_radius) if proven else "nothing proven"
    facts |= {
        f"certified, {PROOF}": found,
        f"attack, {UPPER}": wording.radius(attack, digits, summary.max_radius),
        "threshold": wording.number(gamma, "#.4g"),
        "score": wording.number(score, "#.4g"),
    }
    if shown is None:
        return Card(int(row["index"]), {}, facts, "")
    if shown.score is not None and shown.predicted is not None:
        decision = "rejected" if shown.score > gamma else "accepted"
        facts["score, attacked"] = wording.number(shown.score, "#.4g")
        facts["then"] = f"{decision}, predicted {wording.class_name(summary, shown.predicted)}"
    images = {"clean": shown.clean}
    remark = ""
    if shown.attacked is not None:
        difference, factor = amplified(shown.attacked - shown.clean)
        images |= {"attacked": shown.attacked, f"change \u00d7 {factor:g}": difference}
        if changed := outside(shown.attacked):
            ends = (shown.attacked.min(), shown.attacked.max())
            low, high = (wording.number(float(end), ".3f") for end in ends)
            remark = (
                f"Clipped for display: {changed} of {shown.attacked.size} values lie outside "
                f"[0,1] ({low} to {high}), as the ball allows."
            )
    elif shown.searched or math.isinf(attack):
        within = "" if summary.max_radius is None else f" within {summary.max_radius:g}"
        remark = f"No attack found{within}, so there is none to show."
    pngs = {name: png_of(image) for name, image in images.items()}
    return Card(int(row["index"]), pngs, facts, remark)
