"""Results in OpenOOD's columns, in percent.

The layout is that of OpenOOD's evaluator (v1.5): a row for each OOD set and for the means over near
and far sets, with FPR@95 (ID samples rejected where 95 % of OOD samples are), AUROC, AUPR_IN,
AUPR_OUT and ACC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from greg_cert.data.groups import Group
from greg_cert.evaluation.figures import METRICS, Detection
from greg_cert.evaluation.seeds import Evaluated, SeedMean

COLUMNS = {
    "fpr95_ood_recall": "FPR@95",
    "auroc": "AUROC",
    "aupr_in": "AUPR_IN",
    "aupr_out": "AUPR_OUT",
}
_MEANS: tuple[tuple[Group, str], ...] = (("near", "nearood"), ("far", "farood"))


def openood_rows(detection: Detection) -> list[tuple[str, str]]:
    """(title, prefix of the numbers) of each row: near sets and their mean, far ones, the rest."""
    rows: list[tuple[str, str]] = []
    for group, title in _MEANS:
        members = [n for n in detection.sets if detection.groups.get(n) == group]
        rows += [(name, f"ood/{name}/") for name in members]
        rows += [(title, f"{group}_")] if members else []
    rest = [n for n in detection.sets if detection.groups.get(n) is None]
    rows += [(name, f"ood/{name}/") for name in rest]
    return [*rows, ("mean", "")] if rest else rows


def openood_table(row: Evaluated) -> pd.DataFrame:
    """One run by one detector."""
    cells = {key: round(100 * value, 2) for key, value in row.numbers().items()}
    return _table(openood_rows(row.detection), cells.__getitem__)


def openood_mean_table(mean: SeedMean, detection: Detection) -> pd.DataFrame:
    """Runs of several seeds, as `mean ± std`; `detection` of any of them names the rows."""

    def cell(key: str) -> str:
        return f"{100 * mean.mean[key]:.2f} ± {100 * mean.std[key]:.2f}"

    return _table(openood_rows(detection), cell)


def _table(rows: Sequence[tuple[str, str]], cell: Callable[[str], Any]) -> pd.DataFrame:
    """Rows in their order, where a set may be called as a mean is."""
    accuracy = cell("id_accuracy")
    return pd.DataFrame(
        [
            {c: cell(prefix + m) for m, c in COLUMNS.items()} | {"ACC": accuracy}
            for _, prefix in rows
        ],
        index=[title for title, _ in rows],
        columns=[*COLUMNS.values(), "ACC"],
    )


def results_table(rows: Sequence[Evaluated]) -> pd.DataFrame:
    """Everything in long form: a row for each run, detector and OOD set or mean; in percent.

    Both conventions of FPR95 are there: `FPR95_ID_RECALL` is the paper's (OOD samples accepted
    where 95 % of ID samples are), `FPR@95` OpenOOD's. A run without OOD sets has one row, of its
    accuracy and calibration error.
    """
    records = []
    for row in rows:
        numbers = row.numbers()
        wanted: list[tuple[str, str | None]] = [*openood_rows(row.detection)]
        for title, prefix in wanted or [("", None)]:
            of_set = prefix is not None and prefix.startswith("ood/")  # and not a mean
            found = {} if prefix is None else {m: 100 * numbers[prefix + m] for m in METRICS}
            records.append(
                {
                    "run": row.run,
                    "seed": row.seed,
                    "detector": row.detection.detector,
                    "dataset": title,
                    "group": row.detection.groups.get(title) if of_set else None,
                    **{c: found.get(m) for m, c in COLUMNS.items()},
                    "FPR95_ID_RECALL": found.get("fpr95"),
                    "ACC": 100 * numbers["id_accuracy"],
                    "ECE": 100 * numbers["calibration_error"],
                    "threshold": row.detection.threshold,
                }
            )
    return pd.DataFrame(records)
