"""Files that are written whole, and what killed writers leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greg_cert import files
from greg_cert.files import atomic_path, file_name, is_vacant, sweep, write_atomic

RANDOM = "0123456789ab"


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def made(
    folder: Path,
    writer: int | None,
    age: float = 0.0,
    name: str = "x.json",
    machine: str = files._MACHINE,
) -> Path:
    number = "" if writer is None else f"{machine}-{writer}-"
    path = folder / f".{name}.{number}{RANDOM}.tmp"
    path.write_text("half")
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from greg_cert.files import atomic_path\n"
        f"with atomic_path(Path({str(tmp_path / 'x.json')!r})) as path:\n"
        "    path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert is_vacant(tmp_path)
    write_atomic(tmp_path / "other.json", "{}")  # the first write into the folder
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]
    assert not is_vacant(tmp_path)


def test_only_ours_and_only_of_the_dead(tmp_path: Path, dead: int) -> None:
    left = [
        made(tmp_path, dead),
        made(tmp_path, os.getpid()),  # of a process that had our number
        made(tmp_path, None, age=4000),
        made(tmp_path, os.getppid(), age=4000, name="y"),
    ]
    kept = [
        made(tmp_path, os.getppid()),
        made(tmp_path, None, name="z"),
        made(tmp_path, dead, machine="abcdef"),
    ]
    (tmp_path / ".hidden.tmp").write_text("theirs")
    (tmp_path / f"x.{files._MACHINE}-{dead}-{RANDOM}.tmp").write_text("theirs")
    (tmp_path / f".x.{files._MACHINE}-{dead}-{RANDOM}.tmp").mkdir()
    assert not is_vacant(tmp_path)
    sweep(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert len(list(tmp_path.iterdir())) == len(kept) + 3


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.json") as path:
        path.write_text("half")
        sweep(tmp_path)
        assert path.exists()
        assert not is_vacant(tmp_path)
    assert (tmp_path / "a.json").read_text() == "half"
    assert files._being_written == set()


def test_vacant_is_nothing_or_an_empty_folder(tmp_path: Path, dead: int) -> None:
    assert is_vacant(tmp_path / "none")
    assert is_vacant(tmp_path)
    file = made(tmp_path, dead)
    assert is_vacant(tmp_path)
    assert not is_vacant(file)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GReg+", "GReg+"),
        ("λ = 0.1, ours", "λ_=_0.1_ours"),
        ("../../x", "_.._x"),
        ("..", "_"),
        ("", "_"),
        ("a\nb\0c:d", "a_b_c_d"),
        ("é" * 200, "é" * 60),
        ("a" + "é" * 200, "a" + "é" * 59),
    ],
)
def test_a_text_as_a_file_name(text: str, name: str, tmp_path: Path) -> None:
    assert file_name(text) == name
    (tmp_path / file_name(text)).touch()
    assert len(list(tmp_path.iterdir())) == 1
