"""What reaches a terminal, a pipe or a full disk: names that are no commands, and no traceback."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from rich.table import Table
from rich.text import Text

from greg_cert.cli import _said_of, screen
from greg_cert.errors import GregCertError, UsageError, one_line, shown, visible

EVIL = "a\x1b[31mb\x07\r\nc\u202ed"


def test_texts_of_others_are_made_visible() -> None:
    assert visible(EVIL) == r"a\x1b[31mb\x07\r\nc\u202ed"
    assert visible("∞ ü 漢") == "∞ ü 漢"
    assert one_line(EVIL) == "a [31mb c d"
    assert str(UsageError(EVIL)) == one_line(EVIL)
    assert len(str(GregCertError("x" * 9000))) == 2000
    assert shown("x" * 500, 10) == "'xxxxxxxx…"
    assert shown(10**5000) == "a int"


def test_no_name_is_a_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=Text(EVIL))
    table.add_row(Text(EVIL))
    screen.out(table)
    screen.plain(EVIL)
    screen.step(EVIL)
    screen.note(EVIL)
    with screen.bar(EVIL) as tell:
        tell(1, 2, EVIL)
    with screen.waiting(EVIL):
        pass
    for said in capsys.readouterr():
        assert set(said) <= set(filter(str.isprintable, said)) | {"\n"}
        assert "31mb" in said


class Full(io.StringIO):
    """A stream on a full disk."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def fileno(self) -> int:
        raise OSError("no file")


@pytest.mark.parametrize("way", [lambda: screen.plain("x"), lambda: screen.out("x")])
def test_standard_output_that_is_full(way: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(GregCertError, match=r"^standard output: cannot be written .No space left"):
        way()  # type: ignore[operator]


def test_what_is_no_fault_of_ours_is_one_line() -> None:
    assert _said_of(OSError(36, "File name too long", "x")) == "x: File name too long"
    assert _said_of(OSError(28, "No space left on device")) == "No space left on device"
    assert _said_of(MemoryError()) == "not enough memory: MemoryError"
    assert str(_said_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"))).startswith(
        "not enough memory: Default"
    )
    assert _said_of(RuntimeError("Symlink loop from 'x'")) == "Symlink loop from 'x'"
    assert _said_of(RuntimeError("shapes differ")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_command_under_odd_streams(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "name: ü∇\ndata: {id: {source: digits}}\nmodel: {name: mlp}\n"
        "train: {stages: [{method: ce, epochs: 1, lr: 0.1}]}\n",
        encoding="utf-8",
    )

    def run(into: str, encoding: str, *arguments: str) -> tuple[int, str, str]:
        shell = '"$0" -m greg_cert "$@" > ' + into
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
        environment |= {"PYTHONIOENCODING": encoding, "COLUMNS": "2"}
        done = subprocess.run(
            ["sh", "-c", shell, sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")

    code, _, said = run("/dev/full", "utf-8", "config", "show", str(path))
    expected = "greg-cert: error: standard output: cannot be written (No space left on device)\n"
    assert (code, said) == (1, expected)
    code, found, said = run("/dev/stdout", "latin-1:strict", "config", "show", str(path))
    assert (code, found.splitlines()[0], said) == (0, r"name: ü\u2207", "")
    code, found, said = run("/dev/stdout", "utf-8:strict", "config", "schema", "train.stages")
    assert (code, said) == (0, "")
    assert "batch_size" in found
