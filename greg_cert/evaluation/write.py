"""The files of an evaluation: tables, and all numbers with what made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from greg_cert.errors import UsageError
from greg_cert.evaluation.leaderboard import openood_mean_table, openood_table, results_table
from greg_cert.evaluation.seeds import Evaluated, SeedMean
from greg_cert.evaluation.sheet import evaluation_sheet
from greg_cert.files import file_name, write_atomic
from greg_cert.frames import frame_csv
from greg_cert.report.latex.tables import BOOKTABS, latex_sheet
from greg_cert.report.paper import ANY_PAPER, Paper
from greg_cert.report.tables.forms import markdown_sheet
from greg_cert.runs.records import environment


def record_of(
    rows: Sequence[Evaluated],
    means: Sequence[SeedMean],
    *,
    command: str | None = None,
    left_out: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """All numbers as plain values; metrics are fractions of 1.

    `left_out` says of each run why which detectors have no row.
    """
    return {
        "schema": 1,
        "runs": [
            {
                "run": row.run,
                "seed": row.seed,
                "detector": row.detection.detector,
                "samples": len(row.predictions.label),
                "tpr": row.detection.tpr,
                "threshold": row.detection.threshold,
                "test_tpr": row.detection.test_tpr,
                "groups": dict(row.detection.groups),
                **_nested(row.numbers()),
            }
            for row in rows
        ],
        "means": [
            {
                "title": mean.title,
                "seeds": list(mean.seeds),
                "detector": mean.detector,
                "mean": _nested(mean.mean),
                "std": _nested(mean.std),
            }
            for mean in means
        ],
        "left_out": {run: dict(reasons) for run, reasons in (left_out or {}).items() if reasons},
        "provenance": {**environment("cpu"), "command": command},
    }


def _nested(numbers: Mapping[str, float]) -> dict[str, Any]:
    """`ood/NAME/metric` as sections."""
    found: dict[str, Any] = {"ood": {}}
    for key, value in numbers.items():
        if key.startswith("ood/"):
            name, _, metric = key.removeprefix("ood/").rpartition("/")
            found["ood"].setdefault(name, {})[metric] = value
        else:
            found[key] = value
    return found


def write_evaluation(
    out: Path,
    rows: Sequence[Evaluated],
    means: Sequence[SeedMean],
    record: Mapping[str, Any],
    paper: Paper = ANY_PAPER,
) -> list[Path]:
    """Write `evaluation.json`, `results.csv`, `table.md`, `table.tex` and a CSV for each row.

    `table.tex` is laid out for `paper`.
    The CSVs in `openood/` have OpenOOD's rows and columns; those of several seeds hold mean ± std.

    Raises:
        UsageError: where `out` cannot be written.
    """
    sheet = evaluation_sheet(rows, means)
    files: dict[str, str] = {
        "evaluation.json": json.dumps(record, indent=2, allow_nan=False) + "\n",
        "results.csv": frame_csv(results_table(rows).round(4).set_index("run")),
        "table.md": markdown_sheet(sheet, sheet.title) + "\n",
        "table.tex": BOOKTABS + latex_sheet(sheet, sheet.caption, paper=paper),
    }
    tables: list[tuple[str, pd.DataFrame]] = [
        (f"{row.run}-{row.detection.detector}", openood_table(row).map("{:.2f}".format))
        for row in rows
        if row.detection.sets
    ]
    for mean in means:
        like = next(
            r.detection
            for r in rows
            if (r.family, r.detection.detector) == (mean.family, mean.detector)
        )
        if like.sets:
            tables.append((f"{mean.title}-{mean.detector}-mean", openood_mean_table(mean, like)))
    for title, table in tables:
        name, number = file_name(title), 1
        while f"openood/{name}.csv" in files:  # runs may have names that differ in "/" alone
            number += 1
            name = f"{file_name(title)}-{number}"
        files[f"openood/{name}.csv"] = frame_csv(table.rename_axis("dataset"))
    try:
        (out / "openood").mkdir(parents=True, exist_ok=True)
        return [write_atomic(out / name, text) for name, text in files.items()]
    except OSError as error:
        raise UsageError(f"out {out}: cannot be written ({error.strerror or error})") from error
