"""Whether the columns of a row of certificates fit one another, and the settings of all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype

from greg_cert.certificates.columns import check_column
from greg_cert.certificates.format import CERTIFIED, CONTRADICTED, REJECTED
from greg_cert.certificates.frame_file import PROVEN, RADII, REFUTED
from greg_cert.certificates.method_columns import OPTIONAL_METHODS, holds
from greg_cert.certificates.methods import (
    NO_METHOD,
    PROOF,
    PROOFS,
    RADIUS_METHOD,
    STOPPED_BY,
    column_of,
)
from greg_cert.certificates.summary_file import Summary

_ALL = tuple(dict.fromkeys([*RADII, *(method.column for method in OPTIONAL_METHODS)]))
_CLAIMS = (*PROVEN, *(method.column for method in OPTIONAL_METHODS if method.status == PROOF))
SLACK = 1e-9  # of radii that are computed in different ways

_Rule = tuple[str, np.ndarray, str]
"""A column, where it is wrong, (n,) bool, and what is expected there."""


def check_rows(path: Path, frame: pd.DataFrame, summary: Summary, side: str) -> None:
    """Nothing, if every row is one that the verifier could have written.

    The columns were checked one by one before. `side` is `id` or `ood`: on which side of the
    threshold a sample is right.

    Raises:
        RunError: naming file, column, the value found and what was expected.
    """
    numbers = {
        name: frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("score", "threshold", "gradient_norm", "lipschitz", *_ALL, REFUTED)
        if name in frame.columns
    }
    rules = (*_of_the_sample(frame, numbers, summary, side), *_radii(frame, numbers, summary))
    for column, wrong, expected in rules:
        check_column(path, column, wrong, expected, frame[column].to_numpy())


def _of_the_sample(
    frame: pd.DataFrame, numbers: Mapping[str, np.ndarray], summary: Summary, side: str
) -> Iterator[_Rule]:
    """Index, class, score and slope, and that the status is the one of such a score."""
    yield "index", frame["index"].to_numpy() < 0, "a number >= 0"
    for name in ("score", "threshold"):
        yield name, ~np.isfinite(numbers[name]), "a finite number"
    for name in ("gradient_norm", "lipschitz"):
        if name in numbers:
            yield name, numbers[name] < 0, "a length >= 0"
    accepted = numbers["score"] <= numbers["threshold"]
    right = accepted if side == "id" else ~accepted
    rejected = (frame["status"] == REJECTED).to_numpy(dtype=bool)
    yield "status", ~rejected & ~right, "rejected for a score beyond the threshold"
    if side == "ood" or not summary.correct:  # else it may be of another class
        words = "another than rejected for a score on the right side of the threshold"
        yield "status", rejected & right, words
    if side == "id" and all(is_integer_dtype(frame[name]) for name in ("label", "predicted")):
        same = (frame["label"] == frame["predicted"]).to_numpy(dtype=bool)
        wrong = same != frame["correct"].to_numpy(dtype=bool)
        yield "correct", wrong, "whether label and predicted are the same"


def _radii(
    frame: pd.DataFrame, numbers: Mapping[str, np.ndarray], summary: Summary
) -> Iterator[_Rule]:
    """That radii fit the status, the largest one, the attack and one another."""
    status = frame["status"].to_numpy(dtype=str)
    rejected, refuted = status == REJECTED, status == CONTRADICTED
    certified, attack = numbers["radius_certified"], numbers["radius_attack"]
    yield "radius_certified", (status == CERTIFIED) & (certified == 0), "more than 0"
    for name in (name for name in _ALL if name in numbers and name != "radius_attack"):
        yield name, rejected & (numbers[name] > 0), "0 for status rejected"
    claims = [name for name in _CLAIMS if name in numbers]
    for name in claims:
        yield name, refuted & (numbers[name] > 0), "0 for status contradicted"
    if (limit := summary.max_radius) is not None:
        for name in claims:
            yield name, numbers[name] > limit * (1 + SLACK), f"at most max_radius {limit:g}"
    proofs = [column_of(method) for method in summary.methods if method in PROOFS]
    if proofs and all(name in numbers for name in proofs):
        largest = np.max([np.nan_to_num(numbers[name]) for name in proofs], axis=0)
        off = ~refuted & ~np.isclose(certified, largest, rtol=SLACK, atol=0)
        yield "radius_certified", off, f"the largest of {', '.join(proofs)}"
    if holds(frame, RADIUS_METHOD):
        ran = frame[RADIUS_METHOD].notna().to_numpy(dtype=bool)  # another run's method may differ
        without = (frame[RADIUS_METHOD] == NO_METHOD).to_numpy(dtype=bool)
        words = f"{NO_METHOD} for a certified radius of 0, and a method for another"
        yield RADIUS_METHOD, ~refuted & (without != (certified == 0)) & ran, words
    if holds(frame, STOPPED_BY):
        ran = frame[STOPPED_BY].notna().to_numpy(dtype=bool)
        out = (frame[STOPPED_BY] == REJECTED).to_numpy(dtype=bool)
        yield STOPPED_BY, (out != rejected) & ran, "rejected for status rejected alone"
    proven = np.max([np.nan_to_num(numbers[name]) for name in PROVEN if name in numbers], axis=0)
    inside = proven > attack * (1 + SLACK)
    silent = (inside | refuted) & ~frame["violation"].to_numpy(dtype=bool)
    yield "violation", silent, "True for an attack inside a proven radius"
    if REFUTED in numbers:
        claimed = numbers[REFUTED]
        wrong = np.where(refuted, ~(claimed * (1 + SLACK) >= attack), ~np.isnan(claimed))
        words = "one beyond the attack for status contradicted, and none for another"
        yield REFUTED, wrong, words
