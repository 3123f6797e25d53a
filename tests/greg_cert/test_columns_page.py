"""docs/columns.md names every column and word of the parquet files, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tiny_runs import SETTINGS
from torch import nn

from greg_cert.certificates import score_file
from greg_cert.certificates.format import (
    CERTIFICATES,
    OOD_CERTIFICATES,
    OOD_SCORES,
    SCORES,
    STATUSES,
    SUMMARY,
)
from greg_cert.certificates.frame_file import COLUMNS, OOD_COLUMNS, REFUTED
from greg_cert.certificates.method_columns import DECISION, PVALUE
from greg_cert.certificates.methods import (
    DECISIONS,
    METHODS,
    RADIUS_METHOD,
    STATUS,
    STOPPED_BY,
    STOPS,
    TABLE,
)
from greg_cert.runs.records import RunFolder
from greg_cert.verify import certify
from greg_cert.verify.run.runs import verify_runs

PAGE = (Path(__file__).parents[2] / "docs" / "columns.md").read_text(encoding="utf-8")
_, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
ROWS = {
    part.splitlines()[0]: re.findall(r"^\| `(\w+)` \| (.*) \|$", part, flags=re.MULTILINE)
    for part in SECTIONS
}
NAMES = {title: [name for name, _ in rows] for title, rows in ROWS.items()}


def test_each_table_of_the_page_has_the_columns_of_its_file() -> None:
    more = [m.column for m in TABLE if m.code and m.column not in COLUMNS]
    more += [RADIUS_METHOD, STOPPED_BY, PVALUE, DECISION, REFUTED]
    assert sorted(NAMES["certificates.parquet"]) == sorted([*COLUMNS, *more])
    assert NAMES["ood_certificates.parquet"] == list(OOD_COLUMNS)
    assert NAMES["ood_scores.parquet"] == list(score_file.OOD_COLUMNS)
    assert NAMES["scores.parquet"] == list(score_file.COLUMNS)
    assert NAMES["status"] == list(STATUSES)


def test_a_radius_is_worth_on_the_page_what_the_table_of_methods_says() -> None:
    rows = dict(ROWS["certificates.parquet"])
    for method in TABLE:
        said = rows[method.column]
        other = set(STATUS.values()) - {method.status}
        head = said.partition(" | ")[2].replace("*", "")  # after the unit or the method
        assert head.startswith(method.status), method
        assert not any(head.startswith(f"{word} ") for word in other), method


def test_words_that_a_column_may_hold_are_on_the_page() -> None:
    rows = dict(ROWS["certificates.parquet"])
    assert set(STOPS) <= set(re.findall(r"`(\w+)`", rows[STOPPED_BY]))
    assert set(DECISIONS) <= set(re.findall(r"`(\w+)`", rows[DECISION]))


def test_what_certify_gives_is_on_the_page() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    found = certify(model, torch.rand(2, 1, 2, 2), 9.0, method=METHODS, max_radius=0.1)
    frame: pd.DataFrame = found.to_frame()
    assert len(frame.columns) > 20
    assert set(frame.columns) <= set(NAMES["certificates.parquet"])


def test_what_a_verification_writes_is_on_the_page(
    hasty: None, slow_and_fast: list[RunFolder], tmp_path: Path
) -> None:
    changes = {"method": METHODS, "side": "both", "samples": 2, "ood_samples": 1}
    changes |= {"auc_radii": (0.05,), "smoothing_n": 100, "budget": 100, "max_radius": 0.2}
    assert verify_runs(slow_and_fast[:1], SETTINGS.model_copy(update=changes), tmp_path).complete
    columns = set(NAMES["certificates.parquet"])
    for file, names in {
        CERTIFICATES: columns,
        OOD_CERTIFICATES: columns | {"dataset"},
        OOD_SCORES: set(NAMES["ood_scores.parquet"]),
        SCORES: set(NAMES["scores.parquet"]),
    }.items():
        frame = pd.read_parquet(tmp_path / file)
        assert set(frame.columns) == names, file
        infinite = {c for c in frame.select_dtypes("float") if np.isinf(frame[c]).any()}
        assert infinite <= {"radius_attack", "score_bound"}, file
    summary = json.loads((tmp_path / SUMMARY).read_text(encoding="utf-8"))
    for key in ("norm", "max_radius"):
        assert key in summary
        assert re.search(rf"[ (]`{key}`", PAGE)
