"""docs/tutorial.md and docs/plotting.md, run from the top in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from commands import run_command

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = ("one/bracket.pdf", "fraction.pdf", "ratios.pdf", "slopes.pdf", "scores.pdf")
BLOCK = re.compile(
    r"(?:^In `(?P<file>[^`]+)`:\n\n)?^```(?P<kind>python|yaml|sh)\n(?P<code>.*?)^```$", re.M | re.S
)


def follow(page: str) -> int:
    """Do what a page says in the current folder; the number of its blocks."""
    found = list(BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")))
    for block in found:
        code = block["code"]
        if block["file"] is not None:
            Path(block["file"]).write_text(code, encoding="utf-8")
        elif block["kind"] == "python":
            exec(compile(code, page, "exec"), {})
        else:
            for line in code.splitlines():
                program, *words = shlex.split(line)
                assert program == "greg-cert"
                done = run_command(*words, cwd=Path.cwd())
                assert done.returncode == 0, (line, done.stderr)
    return len(found)


def test_the_tutorial_and_the_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert follow("tutorial.md") == 9
    rows = pd.read_parquet("certified/certificates.parquet")
    assert rows.groupby("run").size().to_dict() == {"GReg+": 8, "energy": 8}
    assert not rows["violation"].any()
    assert (rows["radius_certified"] > 0).mean() > 0.5
    assert rows["correct"].mean() > 0.8
    assert follow("plotting.md") == 5
    for name in (
        "paper/figures.tex",
        "paper/table.tex",
        "paper/mine.pdf",
        "evaluation/table.tex",
        *RECIPES,
    ):
        assert Path(name).stat().st_size > 500, name
