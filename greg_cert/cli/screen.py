"""What commands show: progress on standard error, results on standard output."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greg_cert.errors import EngineError, GregCertError, GregCertWarning, one_line, visible
from greg_cert.launcher import first_process

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import Progress, Task, TaskID
    from rich.segment import Segment
    from rich.status import Status
    from rich.text import Text

    from greg_cert.verify.run.job import Tick


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and no tables, on standard output.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors alone; with --json, that object too.")
]
Device = Annotated[
    str | None,
    typer.Option(help="auto (a CUDA device where there is one), cpu, cuda or cuda:N."),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="PACKAGE.MODULE:NAME",
        help="Code that a run folder names as its network and that may run; may be repeated.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting on top of the file, as train.epochs=5 (of every stage) or "
        "train.stages[1].method=greg+; may be repeated.",
    ),
]


@dataclass
class _Voice:
    """What this process prints."""

    json: bool = False
    quiet: bool = False
    status: Status | None = None  # the moving sign of life, while there is one


_voice = _Voice()


def speak(*, json: bool = False, quiet: bool = False) -> None:
    """Settle what the command prints: as its options `--json` and `--quiet` say.

    Of several processes of a launcher the first one speaks for all.
    """
    first = first_process()
    _voice.json, _voice.quiet = json and first, quiet or not first


class _Visible:
    """What rich draws, of which every text is `visible`."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        for text, style, control in console.render(self._inner, options):
            clean = text if control else "\n".join(map(visible, text.split("\n")))
            yield Segment(clean, style, control)


@contextmanager
def _printing() -> Iterator[None]:
    """Turn a failure of standard output into an error of one line.

    Raises:
        GregCertError: such as for a full disk; where the reader has gone, typer ends the command.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still to be written would fail again when the interpreter ends.
        with suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise GregCertError(
            f"standard output: cannot be written ({error.strerror or error})"
        ) from error


def out(*parts: RenderableType) -> None:
    """Print results."""
    if _voice.json or _voice.quiet:
        return
    from rich.console import Console

    with _printing():
        Console().print(*map(_Visible, parts), soft_wrap=True)


def plain(*lines: object) -> None:
    """Print lines as they are: no wrapping, no markup, so that paths can be copied."""
    if not (_voice.json or _voice.quiet):
        with _printing():
            sys.stdout.writelines(f"{visible(str(line))}\n" for line in lines)


def note(*notes: str) -> None:
    """Say on standard error what the user should know, each in one line."""
    if not _voice.quiet:
        with suppress(OSError):  # what cannot be said is no reason to stop
            sys.stderr.writelines(f"greg-cert: note: {one_line(text)}\n" for text in notes)


def step(line: str) -> None:
    """Say on standard error, above a live bar, what has been done."""
    if not _voice.quiet:
        with suppress(OSError):
            sys.stderr.write(f"{visible(line)}\n")


def fail_on_violations(count: float, worst: str = "") -> None:
    """End the command, if an attack contradicts any certificate.

    Raises:
        EngineError: says how many, and of the worst what it is given.
    """
    if count:
        raise EngineError(
            f"{count:.0f} certificates are contradicted by an attack{worst}. Do not use these "
            "results, and please report them as a bug"
        )


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Say what the library warns of as notes; warnings of others are Python's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=GregCertWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, GregCertWarning):
                note(str(message))
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield


def record(found: Mapping[str, Any]) -> None:
    """Print the command's result as JSON, where that is asked for; what is not finite is null."""
    if _voice.json:
        with _printing():
            sys.stdout.write(dumps(strict(found), indent=2, allow_nan=False) + "\n")


def strict(value: Any) -> Any:
    """The value as JSON can say it: paths as text, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def command_line() -> str:
    """The command as typed, for the record."""
    return shlex.join(["greg-cert", *sys.argv[1:]])


def _error_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _bar(*, time_left: bool = True) -> Iterator[Progress]:
    """Bars, to each of which the field `shown` says what is being done."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    class PlainColumn(TextColumn):
        """Of what may hold names: neither markup nor what a terminal obeys."""

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.plain = visible(text.plain)
            return text

    with Bar(
        PlainColumn("{task.description}", markup=False),  # a run may be called [1]
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        *([TimeRemainingColumn(compact=True)] if time_left else []),
        PlainColumn("{task.fields[shown]}", markup=False),
        console=_error_console(),
        refresh_per_second=5,
        disable=_voice.quiet,
    ) as bar:
        yield bar


def _preparing(bar: Progress, title: str, shown: str = "") -> TaskID:
    """A bar that moves without an end; nothing where it cannot move, as in a file."""
    visible = bar.console.is_interactive
    return bar.add_task(title, total=None, visible=visible, shown=shown)


class TrainingBar:
    """Progress of a training run: losses and gradient norm beside the bar."""

    def __init__(self, title: str, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID = _preparing(bar, title, "prepare")

    def begin(self, steps: int, done: int) -> None:
        """See `greg_cert.train.observer.Observer`."""
        self._bar.reset(self._task, total=steps, completed=done, visible=True, shown="")

    def step(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        """See `greg_cert.train.observer.Observer`."""
        if values:
            names = {
                "ce": "CE",
                "score_loss": "L_S",
                "grad_loss": "L_∇",
                "grad_norm_id": "‖∇S‖",
                "lipschitz_estimate": "L̄",
            }
            shown = " ".join(f"{t} {values[k]:.2g}" for k, t in names.items() if k in values)
            self._bar.update(self._task, shown=f"{stage} {epoch}: {shown}")
        self._bar.advance(self._task)


@contextmanager
def training_bars() -> Iterator[Callable[[str], TrainingBar]]:
    """Live bars for trainings, one under the other; call with a title for the next."""
    with _bar() as bar:
        yield lambda title: TrainingBar(title, bar)


class VerifyBar:
    """Progress of a verification, a bar for each run: samples a second, what was found, time left.

    Speed is that of this process in this call; what an earlier one finished does not count.
    """

    def __init__(self, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar, self._clock = bar, clock
        self._begun: dict[tuple[str, str], tuple[TaskID, int, float]] = {}
        # Data are read and models evaluated before the first sample is.
        self._before: TaskID | None = _preparing(bar, "read data and models")

    def __call__(self, tick: Tick) -> None:
        """See `greg_cert.verify.run.job.Progress`."""
        if self._before is not None:
            self._bar.remove_task(self._before)
            self._before = None
        key = tick.step, tick.run
        if key not in self._begun:
            task = self._bar.add_task(f"{tick.step} {tick.run}", total=tick.of, shown="")
            self._begun[key] = (task, tick.done, self._clock())
        task, before, start = self._begun[key]
        found = f"{tick.found} {'violations' if tick.step == 'audit' else 'certified'}"
        shown = pace(tick.done - before, tick.of - tick.done, self._clock() - start)
        self._bar.update(
            task, completed=tick.done, total=tick.of, shown=f"{tick.done}/{tick.of} {found}{shown}"
        )


def pace(done: int, left: int, seconds: float) -> str:
    """Samples a second and the time that the rest takes; empty where nothing is done yet."""
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    remaining = timedelta(seconds=round(left / rate))
    return f", {rate:.3g} samples/s" + (f", {remaining} left" if left else "")


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A live bar; call it with how much is done, of how much, and what comes next."""
    with _bar() as live:
        task = live.add_task(title, total=None, shown="")
        yield lambda done, of, next_one: live.update(task, completed=done, total=of, shown=next_one)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A moving sign of life on a terminal for what takes seconds and has no parts to count."""
    if _voice.quiet:
        yield
        return
    with _error_console().status(_no_markup(what)) as _voice.status:
        try:
            yield
        finally:
            _voice.status = None


def doing(what: str) -> None:
    """Say beside the sign of life, where there is one, what is being done now."""
    if _voice.status is not None:
        _voice.status.update(_no_markup(what))


def _no_markup(text: str) -> str:
    return visible(text).replace("[", r"\[")


@contextmanager
def verify_bar() -> Iterator[VerifyBar]:
    """A live bar for one verification."""
    with _bar(time_left=False) as bar:
        yield VerifyBar(bar)
