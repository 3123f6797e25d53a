"""What commands print: the bar of a verification by a clock of the test, --json and --quiet."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.progress import Progress

from greg_cert.cli import screen
from greg_cert.cli.screen import VerifyBar, pace
from greg_cert.verify.run.job import Tick

RECORD = '{\n  "found": [\n    null,\n    "x/y"\n  ]\n}\n'


def test_pace_is_samples_a_second_and_the_time_of_the_rest() -> None:
    assert pace(0, 10, 3.0) == ""
    assert pace(5, 10, 2.0) == ", 2.5 samples/s, 0:00:04 left"
    assert pace(1, 7200, 1.0) == ", 1 samples/s, 2:00:00 left"
    assert pace(5, 0, 2.0) == ", 2.5 samples/s"


def test_speed_counts_this_call_alone_and_runs_have_a_bar_each() -> None:
    now = [0.0]
    bar = Progress(disable=True)
    shown = VerifyBar(bar, clock=lambda: now[0])
    shown(Tick("certify", "a [1]", 40, 100, 30))  # 40 of an earlier call
    shown(Tick("certify", "b", 0, 100, 0))
    now[0] = 10.0
    shown(Tick("certify", "a [1]", 60, 100, 47))
    shown(Tick("audit", "b", 0, 9, 0))
    texts = [(task.description, task.fields["shown"]) for task in bar.tasks]
    assert texts == [
        ("certify a [1]", "60/100 47 certified, 2 samples/s, 0:00:20 left"),
        ("certify b", "0/100 0 certified"),
        ("audit b", "0/9 0 violations"),
    ]
    assert [task.completed for task in bar.tasks] == [60, 0, 0]


def test_names_on_bars_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.bar("measure a [b]") as tell:
        tell(1, 2, "c [/d]")
    with screen.verify_bar() as shown:
        shown(Tick("certify", "a [1]", 40, 100, 30))
    said = capsys.readouterr().err
    for name in ("measure a [b]", "c [/d]", "certify a [1]"):
        assert name in said


@pytest.mark.parametrize(
    ("json", "quiet", "shown", "said"),
    [
        (False, False, ["a line\n"], ["greg-cert: note: a note\n"]),
        (True, False, [RECORD], ["greg-cert: note: a note\n"]),
        (False, True, [], []),
        (True, True, [RECORD], []),
    ],
)
def test_what_is_printed_where(
    json: bool, quiet: bool, shown: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    screen.speak(json=json, quiet=quiet)
    try:
        with screen.waiting("work"):
            screen.record({"found": (float("inf"), Path("x/y"))})
        screen.plain("a line")
        screen.note("a\nnote")
    finally:
        screen.speak()
    out, err = capsys.readouterr()
    assert out == "".join(shown)
    assert err == "".join(said)
