"""Whether the columns of a row of certificates fit one another, and the settings of all rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype

from greg_cert.certificate_counts import CONTRADICTED
from greg_cert.certify_methods import PROOFS, column_of
from greg_cert.errors import RunError
from greg_cert.report.frame_file import PROVEN, RADII
from greg_cert.report.methods import METHODS
from greg_cert.report.summary_file import Summary

REFUTED = "radius_refuted"
SLACK = 1e-9  # of radii that are computed in different ways


class _Rule(NamedTuple):
    """What rows must not be, (n,) bool, and how a message says it."""

    column: str
    wrong: np.ndarray
    expected: str


def check_rows(path: Path, frame: pd.DataFrame, summary: Summary, side: str) -> None:
    """Nothing, if every row is one that the verifier could have written.

    Args:
        path: of the table, for the message.
        frame: certificates whose columns were checked one by one.
        summary: what the rows were made with.
        side: `id` or `ood`: on which side of the threshold a sample is right.

    Raises:
        RunError: naming file, column, the value found and what was expected.
    """
    for rule in _rules(frame, summary, side):
        if rule.wrong.any():
            row = int(np.flatnonzero(rule.wrong)[0])
            raise RunError(
                f"{path}: column {rule.column}: expected {rule.expected}, but got "
                f"{frame[rule.column].iloc[row]} in row {row}"
            )


def _rules(frame: pd.DataFrame, summary: Summary, side: str) -> list[_Rule]:
    here = frame.columns
    radii = list(dict.fromkeys([*RADII, *(m.column for m in METHODS)]))
    numbers = {
        name: frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("score", "threshold", *radii, REFUTED, "gradient_norm", "lipschitz")
        if name in here
    }
    status = frame["status"].to_numpy(dtype=str)
    certified, attack = numbers["radius_certified"], numbers["radius_attack"]
    accepted = numbers["score"] <= numbers["threshold"]
    right = accepted if side == "id" else ~accepted
    rejected, refuted = status == "rejected", status == CONTRADICTED
    rules = [
        _Rule(name, ~np.isfinite(numbers[name]), "a finite number")
        for name in ("score", "threshold")
    ]
    rules += [
        _Rule(name, numbers[name] < 0, "a length >= 0")
        for name in ("gradient_norm", "lipschitz")
        if name in here
    ]
    rules += [
        _Rule("index", frame["index"].to_numpy() < 0, "a number >= 0"),
        _Rule("status", ~rejected & ~right, "rejected for a score beyond the threshold"),
        _Rule("radius_certified", (status == "certified") & (certified == 0), "more than 0"),
    ]
    if side == "ood" or not summary.correct:  # else it may be of another class
        words = "another than rejected for a score on the right side of the threshold"
        rules.append(_Rule("status", rejected & right, words))
    rules += [
        _Rule(name, rejected & (numbers[name] > 0), "0 for status rejected")
        for name in radii
        if name in here
    ]
    limit = math.inf if summary.max_radius is None else summary.max_radius * (1 + SLACK)
    proofs = {*PROVEN, REFUTED, *(m.column for m in METHODS if m.status == "proof")}
    rules += [
        _Rule(name, numbers[name] > limit, f"at most the largest radius {summary.max_radius:g}")
        for name in sorted(proofs & set(here))
        if summary.max_radius is not None
    ]
    asked = [column_of(method) for method in summary.methods if method in PROOFS]
    if asked and all(name in here for name in asked):
        largest = np.max([np.nan_to_num(numbers[name]) for name in asked], axis=0)
        off = ~refuted & ~np.isclose(certified, largest, rtol=SLACK, atol=0)
        words = f"the largest of {', '.join(asked)}"
        rules.append(_Rule("radius_certified", off, words))
    proven = np.max([np.nan_to_num(numbers[name]) for name in PROVEN if name in here], axis=0)
    crossed = (proven > attack * (1 + SLACK)) & ~frame["violation"].to_numpy(dtype=bool)
    rules.append(_Rule("violation", crossed, "True for an attack inside the proven radius"))
    if REFUTED in here:
        known = ~np.isnan(numbers[REFUTED])
        words = f"a radius > 0 for status {CONTRADICTED}, and none for another"
        wrong = (known != refuted) | (numbers[REFUTED] <= 0)
        rules.append(_Rule(REFUTED, wrong, words))
    if side == "id" and all(is_integer_dtype(frame[name]) for name in ("label", "predicted")):
        same = (frame["label"] == frame["predicted"]).to_numpy(dtype=bool)
        wrong = same != frame["correct"].to_numpy(dtype=bool)
        rules.append(_Rule("correct", wrong, "whether label and predicted are the same"))
    return rules
