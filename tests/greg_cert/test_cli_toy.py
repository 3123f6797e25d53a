"""`greg-cert demo --toy` as a user meets it, with a few steps instead of hundreds."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from commands import error_of, exit_code
from PIL import Image

from greg_cert.cli.toy import toy_lines
from greg_cert.train.toy import plane as toy

FILES = ("toy.png", "toy.pdf", "toy.json")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration takes a moment."""
    small = functools.partial(
        toy.ToySettings, per_class=10, outliers=20, hidden=8, steps=12, grid=9
    )
    monkeypatch.setattr(toy, "ToySettings", small)


def test_files_and_lines_alike_each_time(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "deep" / "toy"
    assert exit_code("demo", "--toy", "--out", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == [str(out / name) for name in FILES]
    record = json.loads((out / "toy.json").read_text())
    assert said[:-3] == toy_lines(record)
    assert list(record["runs"]) == ["energy", "greg"]
    assert record["settings"]["steps"] == 12
    assert record["settings"]["seed"] == 0
    assert record["provenance"]["versions"]["torch"]
    assert record["provenance"]["command"] == f"greg-cert demo --toy --out {out}"
    for method, line in zip(("energy", "greg"), said, strict=False):
        assert line.startswith(f"{method}:")
        assert f"accuracy {record['runs'][method]['accuracy']:.3f}" in line
    with Image.open(out / "toy.png") as image:
        assert image.width == 2025
    assert (out / "toy.pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.chdir(tmp_path)
    assert exit_code("demo", "--toy") == 0
    again = tmp_path / "greg-cert-toy"
    for name in FILES[:2]:
        assert (out / name).read_bytes() == (again / name).read_bytes()
    other = json.loads((again / "toy.json").read_text())
    assert record | {"provenance": None} == other | {"provenance": None}


@pytest.mark.parametrize("kind", ["full", "below a file"])
def test_a_folder_in_use_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "full":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
    else:
        (tmp_path / "out").write_text("mine")
    out = tmp_path / "out" / "deep" if kind == "below a file" else tmp_path / "out"
    assert exit_code("demo", "--toy", "--out", str(out)) == 2
    assert "--out" in error_of(capsys.readouterr().err)


def test_lines_without_a_pair_or_an_accepted_point_say_so() -> None:
    numbers = {
        "accuracy": 0.5,
        "gradient_id_mean": 1.0,
        "gradient_id_max": 2.0,
        "gradient_plane_mean": 3.0,
        "crossing_id_share": None,
    }
    record = {"settings": {"radius": 0.25}, "runs": {"energy": numbers}, "pair": None}
    first, last = toy_lines(record)
    assert "none accepted" in first
    assert last.startswith("no two held-out outliers")
