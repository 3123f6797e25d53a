"""The code of docs/extending.md in a copy of the package: what it adds is added, then used."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_code import blocks

ROOT = Path(__file__).parents[2]


def add_entry(file: Path, table: str, code: str) -> None:
    """Add an entry at the end of a table, as the page says."""
    text = file.read_text(encoding="utf-8")
    found = re.search(rf"^{table}\b[^\n]*= ?[(\[{{]\n(?:(?![)\]}}]\n).*\n)*", text, re.M)
    assert found, (file, table)
    file.write_text(text[: found.end()] + code + text[found.end() :], encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the package with all that the page adds; and the code that uses it."""
    root = tmp_path_factory.mktemp("extended")
    for room in ("greg_cert", "train", "verify", "configs"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, root / room, symlinks=True, ignore=skip)
    uses, imports = [], {}
    for block in blocks("extending.md"):
        file, table, code = block["file"], block["table"], block["code"]
        if file is None:
            uses.append(code)
        elif table is None:
            assert not (root / file).exists()
            (root / file).write_text(code, encoding="utf-8")
            for name in re.findall(r"^class (\w+)", code, re.M):
                imports[name] = file.removesuffix(".py").replace("/", ".")
        else:
            add_entry(root / file, table, code)
            name = code.strip().rstrip(",")
            if name in imports:  # an entry that is a class
                text = (root / file).read_text(encoding="utf-8")
                line = f"from {imports[name]} import {name}\n"
                where = text.index("\nfrom greg_cert.data.sources.") + 1
                (root / file).write_text(text[:where] + line + text[where:], encoding="utf-8")
    return root, uses


def run(root: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_the_page_adds_can_be_used(extended: tuple[Path, list[str]]) -> None:
    root, uses = extended
    assert len(uses) == 5
    inside = f"import greg_cert\nassert greg_cert.__file__.startswith({str(root)!r})\n"
    run(root, inside + "\n".join(uses))


def test_the_command_line_knows_it(extended: tuple[Path, list[str]]) -> None:
    root, _ = extended
    listed = subprocess.run(
        [sys.executable, "-m", "greg_cert", "config", "schema"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    words = " ".join(listed.split())
    for said in ("few-balls (proof)", "| hinge", "| absent_max", "| stripes", "Of a stripe"):
        assert said in words, said
