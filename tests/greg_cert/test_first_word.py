"""What a command says before it imports anything, and when a signal ends it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, exit_code

from greg_cert.cli import commands, first_word, how_to_go_on, screen


def test_nothing_that_takes_time_is_imported_before_the_first_word() -> None:
    heavy = ("typer", "rich", "pydantic", "numpy", "torch", "pandas", "yaml")
    code = f"import sys, greg_cert.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_every_command_that_imports_much_says_a_word() -> None:
    names = {command.callback.__name__ for command in commands.app.registered_commands}  # type: ignore[union-attr]
    assert len(names) == 9
    for name in names:
        assert first_word([name, "RUN", "--json"]) == f"greg-cert {name}: loading libraries ..."
        for silent in ("-q", "--quiet", "--help"):
            assert first_word([name, "RUN", silent]) == ""
    for others in ([], ["--help"], ["config", "show", "x.yaml"], ["trian"]):
        assert first_word(others) == ""


def test_the_first_of_several_processes_speaks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert first_word(["train"]) == ""
    monkeypatch.setenv("RANK", "0")
    assert first_word(["train"]) != ""


def test_how_a_stopped_command_goes_on() -> None:
    train = ["train", "a b.yaml", "--out", "x"]
    assert how_to_go_on(train) == "; go on with: greg-cert train 'a b.yaml' --out x --resume"
    assert how_to_go_on([*train, "--resume"]) == how_to_go_on(train)
    assert how_to_go_on(["tune", "x.yaml"]).endswith("tune x.yaml --resume")
    assert how_to_go_on(["verify", "RUN"]) == "; go on with: greg-cert verify RUN"
    for begins_anew in (["verify", "RUN", "--restart"], ["report", "RUN"], []):
        assert how_to_go_on(begins_anew) == ""


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_ends_with_one_line(
    number: signal.Signals,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, cleaned = signal.getsignal(number), []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(commands, "app", work)
    assert exit_code("train", "x.yaml") == 128 + number
    said = capsys.readouterr().err.splitlines()
    assert said == [f"greg-cert: {word}; go on with: greg-cert train x.yaml --resume"]
    assert cleaned
    assert signal.getsignal(number) is before


def run(code: str, folder: Path, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """`greg-cert verify RUN` in a process of its own, where `code` stands for the commands."""
    main = (
        "import sys, greg_cert.cli as cli; from greg_cert.cli import commands\n"
        f"def work():\n    {code}\n"
        "commands.app = work; sys.argv = ['greg-cert', 'verify', 'RUN']; cli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", main],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
    )


def test_the_word_is_for_a_terminal(tmp_path: Path) -> None:
    assert run("pass", tmp_path).stderr == ""
    ours, theirs = pty.openpty()
    try:
        assert run("pass", tmp_path, stderr=theirs).returncode == 0
        assert os.read(ours, 1000) == b"greg-cert verify: loading libraries ...\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_signal_during_an_import_ends_the_process_at_once(tmp_path: Path) -> None:
    # numpy and others catch what is raised while they are imported, and go on half made.
    (tmp_path / "stubborn.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n    pass\n"
    )
    done = run("import stubborn; print('went on')", tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "greg-cert: interrupted; go on with: greg-cert verify RUN\n"


def test_what_is_being_done_stands_beside_the_sign_of_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with screen.waiting("trace [1]"):
        screen.doing("try crown [2]")
    screen.doing("nobody hears")
    said = capsys.readouterr().err
    assert "try crown [2]" in said
    assert "nobody" not in said


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT; here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
