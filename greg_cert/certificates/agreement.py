"""Whether `summary.json` says of the rows what can be counted from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.certificates.certificate_counts import id_side, ood_sides, robust
from greg_cert.certificates.certified_metrics import clean_auroc
from greg_cert.certificates.columns import refused
from greg_cert.certificates.folder import Tables
from greg_cert.certificates.format import (
    CERTIFICATES,
    OOD_CERTIFICATES,
    OOD_SCORES,
    SCORES,
    SUMMARY,
)
from greg_cert.certificates.score_file import OOD, TEST
from greg_cert.certificates.summary_file import Detection, Summary
from greg_cert.errors import RunError
from greg_cert.metrics import fpr_at_ood_recall, fpr_at_tpr

_CLOSE = 1e-9  # of sums that were added up in another order


def check_agreement(
    folder: Path, document: Mapping[str, Any], summary: Summary, tables: Tables
) -> None:
    """Nothing, if every number of the summary that rows give is the one they give.

    What the summary of an earlier version does not say is passed over. `document` is `summary.json`
    as it is, and `summary` its checked fields.

    Raises:
        RunError: naming file and field, the number found and the one expected.
    """
    for run in summary.runs:
        own, said = tables.of(run), document["runs"][run]
        for name, table in ((CERTIFICATES, own.certificates), (OOD_CERTIFICATES, own.ood)):
            _check_run(folder / name, run, summary, table)
        _check_sets(folder / SUMMARY, f"runs.{run}.ood_side", said, own.ood)
        for source, found in _counted(own, said, summary.runs[run].threshold):
            _compare(folder / SUMMARY, f"runs.{run}", said, found, source)
    _check_progress(folder / SUMMARY, summary, tables)
    _check_samples(folder, tables)


def _counted(
    own: Tables, said: Mapping[str, Any], threshold: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the rows of one run give, in the form of its entry in the summary, and which file."""
    yield CERTIFICATES, id_side(own.certificates)
    if len(own.ood):
        yield OOD_CERTIFICATES, {"ood_side": ood_sides(own.ood)}
    for radius in own.bounds["radius"].unique() if len(own.bounds) else ():
        at = robust(own.certificates, own.ood, own.bounds, radius)
        yield OOD_SCORES, {"robust": {f"{radius:g}": at}}
    if len(own.scores):
        parts = own.scores.groupby("part", sort=False)["score"]
        by_part = {str(part): scores.to_numpy(dtype=float) for part, scores in parts}
        test = by_part.pop(TEST)
        yield (
            SCORES,
            {
                "test_tpr": float(np.mean(test <= threshold)),
                "ood": {
                    part.removeprefix(OOD): {
                        "auroc": clean_auroc(test, scores),
                        "fpr95": fpr_at_tpr(test, scores),
                        "fpr95_ood_recall": fpr_at_ood_recall(test, scores),
                    }
                    for part, scores in by_part.items()
                },
            },
        )
    evaluated = list((said.get("ood") or {}).values())
    for metric in Detection.model_fields:
        values = [found.get(metric) for found in evaluated]
        if values and None not in values:
            yield "its field ood", {metric: float(np.mean(values))}


def _compare(path: Path, field: str, said: Any, found: Any, source: str) -> None:
    """Refuse what differs from what was found; what is not said at all is passed over."""
    if isinstance(found, dict) and isinstance(said, dict):
        for key, value in found.items():
            if key in said:
                _compare(path, f"{field}.{key}", said[key], value, source)
        return
    numbers = [isinstance(value, int | float) for value in (said, found)]
    if said != found and not (
        all(numbers) and math.isclose(said, found, rel_tol=_CLOSE, abs_tol=_CLOSE)
    ):
        raise RunError(f"{path}: field {field}: expected {found} of {source}, but got {said}")


def _check_sets(path: Path, field: str, said: Mapping[str, Any], ood: pd.DataFrame) -> None:
    told, here = said.get("ood_side"), set(ood["dataset"]) if len(ood) else set()
    if told is None:
        return
    for name in sorted({*told} - here):
        raise RunError(
            f"{path}: field {field}.{name}: expected rows in {OOD_CERTIFICATES}, but got none"
        )
    for name in sorted(here - {*told}):
        raise RunError(
            f"{path}: field {field}: expected {name!r}, of which {OOD_CERTIFICATES} has rows"
        )


def _check_run(path: Path, run: str, summary: Summary, rows: pd.DataFrame) -> None:
    """γ and the method of a run are the same in every row."""
    if rows.empty:
        return
    record = summary.runs[run]
    far = ~np.isclose(rows["threshold"].astype(float), record.threshold, rtol=_CLOSE, atol=0)
    other = rows["method"] != record.method if "method" in rows else np.zeros(len(rows), bool)
    for column, wrong in (("threshold", far), ("method", other)):
        if wrong.any():
            expected = f"{getattr(record, column)} of run {run!r} in {SUMMARY}"
            raise refused(path, column, expected, rows[column][wrong].iloc[0])


def _check_progress(path: Path, summary: Summary, tables: Tables) -> None:
    """As many samples as were wanted, or fewer where the verification is not complete."""
    counts = [
        ("wanted", tables.of(run).certificates, summary.wanted)
        for run in summary.runs
        if summary.side == "id"
    ]
    if summary.ood_wanted is not None and len(tables.ood):
        counts += [
            (f"ood_wanted.{name}", rows, summary.ood_wanted.get(str(name), 0))
            for (_, name), rows in tables.ood.groupby(["run", "dataset"], sort=False)
        ]
    for field, rows, wanted in counts:
        if wanted is None or len(rows) == wanted or (len(rows) < wanted and not summary.complete):
            continue
        raise RunError(f"{path}: field {field}: expected {len(rows)}, as rows, but got {wanted}")
    first = len(tables.of(next(iter(summary.runs))).certificates)
    if summary.side == "id" and summary.samples not in (None, first):
        raise RunError(
            f"{path}: field samples: expected the {first} rows of a run, but got {summary.samples}"
        )


def _check_samples(folder: Path, tables: Tables) -> None:
    """One sample has one label under every run, and one clean score in both files about it."""
    labels = tables.certificates.groupby("index")["label"]
    several = labels.nunique() > 1
    if several.any():
        index = several[several].index[0]
        found = " and ".join(str(label) for label in labels.get_group(index).unique())
        expected = f"one for index {index} under every run"
        raise refused(folder / CERTIFICATES, "label", expected, found)
    if tables.bounds.empty or tables.ood.empty:
        return
    keys = ["run", "dataset", "index"]
    both = tables.bounds.merge(tables.ood[[*keys, "score"]], on=keys, suffixes=("", "_clean"))
    far = ~np.isclose(both["score"], both["score_clean"], rtol=_CLOSE, atol=_CLOSE)
    if far.any():
        row = both[far].iloc[0]
        where = f"{OOD_CERTIFICATES} for run {row['run']!r}, index {row['index']}"
        expected = f"{row['score_clean']} of {where}"
        raise refused(folder / OOD_SCORES, "score", expected, row["score"])
