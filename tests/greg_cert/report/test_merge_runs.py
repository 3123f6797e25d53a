"""Runs that were verified one by one and put together, against one verification of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_runs import SETTINGS
from typer.testing import CliRunner

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import read_pictures
from greg_cert.cli import app
from greg_cert.config import VerifyConfig
from greg_cert.errors import UsageError
from greg_cert.report import load_results
from greg_cert.runs.records import RunFolder
from greg_cert.verify.run.runs import verify_runs

BOTH = VerifyConfig.model_validate(
    {
        **SETTINGS.model_dump(),
        **{"side": "both", "auc_radii": (0.05, 0.2), "method": "crown-ibp", "cuts": 0},
        **{"samples": 3, "ood_samples": 1},
    }
)
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folders(
    hasty: None, slow_and_fast: list[RunFolder], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Verification folders by name: of both runs, and of each alone."""
    out = tmp_path_factory.mktemp("verified")
    slow, fast = slow_and_fast
    verify_runs([fast], BOTH, out / "both", baseline=slow)
    verify_runs([slow], BOTH, out / "slow")
    verify_runs([fast], BOTH, out / "fast")
    return {path.name: path for path in out.iterdir()}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def compared(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command says of both runs, and the folder it wrote."""
    out = tmp_path_factory.mktemp("compared") / "c"
    command = ["compare", str(folders["slow"]), str(folders["fast"]), "--baseline", "slow"]
    return RUNNER.invoke(app, [*command, "--out", str(out), "--venue", "eccv"]), out


def test_it_equals_one_verification_of_both(compared: Any, folders: dict[str, Path]) -> None:
    done, out = compared
    assert done.exit_code == 0, done.output
    whole, merged = summary(folders["both"]), summary(out)
    for found in (whole, merged):
        for run in found["runs"].values():
            assert run.pop("seconds") > 0
    for field in {*whole, *merged} - {"provenance", "merged", "digest"}:
        assert merged[field] == whole[field], field
    assert set(whole["runs"]["slow"]["robust"]) == {"0.05", "0.2"}
    tables = {path.name for path in folders["both"].glob("*.parquet")}
    assert tables >= {f"{name}.parquet" for name in ("certificates", "ood_certificates")}
    assert {path.name for path in out.glob("*.parquet")} == tables
    for name in tables:
        one, other = (pd.read_parquet(folder / name) for folder in (folders["both"], out))
        pd.testing.assert_frame_equal(one, other)
    assert load_results(out).summary.provenance.configs.keys() == {"slow", "fast"}
    pictures = [
        {p.key: (p.radius, p.clean.sum()) for p in read_pictures(folder / PICTURES)}
        for folder in (folders["both"], out)
    ]
    assert pictures[0] == pictures[1]
    assert {key[0] for key in pictures[1]} == {"slow", "fast"}


def unknown(document: Any, read: Any, at: str = "") -> Iterator[str]:
    """Keys of a document, at any depth, that its model does not have."""
    for key, value in document.items() if isinstance(document, dict) else ():
        if key not in read:
            yield f"{at}{key}"
        else:
            yield from unknown(value, read[key], f"{at}{key}.")


def test_every_key_that_is_written_is_a_field(compared: Any, folders: dict[str, Path]) -> None:
    for folder in (*folders.values(), compared[1]):
        known = load_results(folder).summary.model_dump()
        envelope = {"schema", "digest"}  # which the reader checks before the fields
        assert set(unknown(summary(folder), known)) == envelope


def test_the_command_reports(compared: Any, folders: dict[str, Path]) -> None:
    done, out = compared
    text = " ".join(done.output.split())
    assert "fast against slow: ratio of median certified radii" in text
    assert "Wilcoxon signed-rank" in text
    assert f"results: {out / 'certificates.parquet'}" in text
    names = {path.name for path in (out / "report").iterdir()}
    assert {"report.html", "table.tex", "figures.tex", "bracket.pdf", "ood_fpr.pdf"} <= names


def test_figures_of_a_venue_alone(compared: Any, tmp_path: Path) -> None:
    _, out = compared
    options = ["--venue", "acm", "--columns", "2", "--palette", "grey", "--dpi", "60", "--svg"]
    command = ["report", str(out), "--out", str(tmp_path / "r"), "--only", "bracket,ood_fpr"]
    done = RUNNER.invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        f"{name}.{kind}" for name in ("bracket", "ood_fpr") for kind in ("png", "pdf", "svg")
    }
    done = RUNNER.invoke(app, [*command, "--venue", "nowhere"])
    assert isinstance(done.exception, UsageError)
