"""`greg-cert evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from greg_cert.cli import screen
from greg_cert.cli.report import Venue

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.table import Column, Table
    from rich.text import Text

    from greg_cert.evaluation.evaluator import Evaluator
    from greg_cert.evaluation.seeds import Evaluated, SeedMean
    from greg_cert.runs.subjects import Subject

_MOST_SETS = 4  # tables of single runs that a terminal is given


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or YAML files of models from elsewhere."),
    ],
    detector: Annotated[
        str | None,
        typer.Option(
            help="Post-hoc detectors, such as energy,ash,knn:k=20 (';' between those with several "
            "options), or all; by default the score a run was trained for. --list-detectors.",
        ),
    ] = None,
    tpr: Annotated[float, typer.Option(help="Share of the calibration split to accept.")] = 0.95,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for tables: CSV in OpenOOD's columns, Markdown, LaTeX, JSON."),
    ] = None,
    venue: Venue = None,
    save: Annotated[
        bool, typer.Option(help="Keep scores in RUN/scores, and read what is there.")
    ] = True,
    list_detectors: Annotated[
        bool,
        typer.Option(
            "--list-detectors",
            is_eager=True,
            callback=lambda v: listed(v),
            help="List the detectors with their sources and options, and stop.",
        ),
    ] = False,
    device: screen.Device = None,
    set_: screen.Set = None,
    trust: screen.Trust = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Accuracy, calibration and detection metrics of models on every OOD test set.

    FPR95 (ID recall) is the share of OOD samples accepted where 95 % of ID samples are, as in the
    paper; FPR95 (OOD recall) is OpenOOD's direction, ID samples rejected where 95 % of OOD samples
    are. Runs that differ in their seed alone are summed up as mean ± standard deviation.

    Of several detectors each is told when it is done. One of `all` that a model or its data do not
    suit is left out, with the reason, and the others go on; one that is named ends the command.

    Example: greg-cert evaluate runs/energy runs/greg+

    Example: greg-cert evaluate runs/greg+ --detector energy,ash,knn --out results --venue eccv

    Example: greg-cert evaluate runs/greg+ --set "data.ood=[{source: folder, path: new_images}]"
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.detectors import DETECTORS, parse_detector
    from greg_cert.devices import find_device
    from greg_cert.errors import UsageError
    from greg_cert.evaluation.evaluator import Evaluator
    from greg_cert.evaluation.seeds import over_seeds
    from greg_cert.evaluation.write import record_of, write_evaluation
    from greg_cert.report.paper import ANY_PAPER
    from greg_cert.runs.subjects import common_data, open_subject, unique_names
    from greg_cert.scores import SCORES

    paper = ANY_PAPER
    if venue is not None:
        from greg_cert.report import venue_style  # and matplotlib with it

        paper = venue_style(venue).paper
        if out is None:
            raise UsageError("--venue: expected --out beside it, the folder for the LaTeX table")
    where = find_device(device or "auto")
    subjects = [open_subject(path, set_, trust) for path in runs]
    if not 0 < tpr <= 1:
        raise UsageError(f"--tpr: expected a share in (0, 1], but got {tpr}")
    asked: dict[str, tuple[str | None, bool]] = {}  # what is the same, however it is written, once
    for spec, named in specs(detector, list(DETECTORS)).items():
        own = spec is None or spec in SCORES
        meant = str(spec if own else parse_detector(str(spec)))
        first, before = asked.get(meant, (spec, False))
        asked[meant] = first, before or named
    rows: list[Evaluated] = []
    left_out: dict[str, dict[str, str]] = {}
    data: dict[Any, Any] = {}
    for name, subject in zip(unique_names(subjects), subjects, strict=True):
        key = subject.config.data  # a frozen record
        first, splits = data.get(key, (subject, None))
        with screen.waiting(f"read the data of {name}"):
            splits = common_data([first, subject], splits) if splits else common_data([subject])
        data[key] = (first, splits)
        with screen.bar(f"evaluate {name}") as tell:
            evaluator = Evaluator(subject, splits, tpr=tpr, scores=save, device=where)
            evaluator.observer = tell
            found, left_out[name] = _rows(evaluator, subject, name, asked.values())
            rows += found
        if evaluator.unsaved:
            screen.note(evaluator.unsaved)
    means = over_seeds(rows)
    record = record_of(rows, means, command=screen.command_line(), left_out=left_out)
    screen.record(record)
    screen.out(summary(rows, means))
    if len(rows) <= _MOST_SETS:
        for row in rows:
            if row.detection.sets:
                screen.out(by_set(row))
    elif out is None:
        screen.plain("figures of each OOD set: --out FOLDER, or --json")
    if out is not None:
        screen.plain(*write_evaluation(out, rows, means, record, paper))


def _rows(
    evaluator: Evaluator,
    subject: Subject,
    run: str,
    asked: Collection[tuple[str | None, bool]],
) -> tuple[list[Evaluated], dict[str, str]]:
    """A row for each detector of one run; and why one that was not named is left out."""
    from greg_cert.errors import GregCertError
    from greg_cert.evaluation.seeds import evaluated

    rows: list[Evaluated] = []
    reasons: dict[str, str] = {}
    _ = evaluator.predictions  # so that a run that cannot be evaluated at all says so once
    for done, (spec, named) in enumerate(asked, 1):
        begun = time.monotonic()
        try:
            rows.append(evaluated(evaluator, subject, run, spec))
        except Exception as error:
            if named or (done == len(asked) and not rows):
                raise
            kind = "" if isinstance(error, GregCertError) else f"{type(error).__name__}: "
            reasons[str(spec)] = f"{kind}{error}"
            screen.note(f"{run}: detector {spec} is left out: {kind}{error}")
            continue
        if len(asked) > 1:
            detector = rows[-1].detection.detector
            seconds = time.monotonic() - begun
            screen.step(f"{run}: {detector}, {seconds:.1f} s ({done} of {len(asked)})")
    return rows, reasons


def specs(text: str | None, known: Sequence[str]) -> dict[str | None, bool]:
    """The detectors asked for, None for a run's own score; and whether each is named, or of `all`.

    Semicolons part detectors, and so do commas; one before `name=` belongs to the options of the
    detector before it.

    Raises:
        UsageError: where a text names none.
    """
    if text is None:
        return {None: True}
    found: list[tuple[str, bool]] = []
    for part in text.replace(";", ",").split(","):
        if part.strip() == "all":
            found += [(name, False) for name in known]
        elif found and "=" in part and ":" not in part:
            found[-1] = f"{found[-1][0]},{part.strip()}", True
        elif part.strip():
            found.append((part.strip(), True))
    if not found:
        from greg_cert.errors import UsageError

        raise UsageError(f"--detector: expected names such as energy,ash, but got {text!r}")
    return {spec: (spec, True) in found for spec, _ in found}


_TITLES = {
    "id_accuracy": "ID acc.",
    "calibration_error": "ECE",
    "fpr95": "FPR95\n(ID rec.)",
    "fpr95_ood_recall": "FPR95\n(OOD rec.)",
    "auroc": "AUROC",
    "near_auroc": "near\nAUROC",
    "far_auroc": "far\nAUROC",
    "aupr_in": "AUPR\nin",
    "aupr_out": "AUPR\nout",
}
_OF_A_SET = ("fpr95", "auroc", "aupr_in", "aupr_out", "fpr95_ood_recall")


def summary(rows: Sequence[Evaluated], means: Sequence[SeedMean]) -> Table:
    """A line for each run and detector, and for each mean over seeds; percent."""
    from rich.table import Column
    from rich.text import Text

    numbers = [row.numbers() for row in rows]
    metrics = [name for name in _TITLES if any(name in n for n in numbers)]
    title = Text("ID test split, and means over OOD test sets, in percent", style="table.title")
    names = (Column("run", overflow="fold"), Column("detector", overflow="fold", min_width=8))
    table = _percentages(title, names, metrics)
    for row, found in zip(rows, numbers, strict=True):
        cells = (f"{100 * found[k]:.2f}" if k in found else "" for k in metrics)
        table.add_row(Text(row.run), Text(row.detection.detector), *cells)
    for mean in means:
        cells = (
            f"{100 * mean.mean[k]:.2f}\n±{100 * mean.std[k]:.2f}" if k in mean.mean else ""
            for k in metrics
        )
        table.add_row(Text(f"{mean.title}, {len(mean.seeds)} runs"), Text(mean.detector), *cells)
    return table


def by_set(row: Evaluated) -> Table:
    """A line for each OOD set of one run by one detector."""
    from rich.table import Column
    from rich.text import Text

    found = row.detection
    title = Text(
        f"{row.run} ({found.detector}): threshold {found.threshold:.4f} "
        f"(accepts {found.test_tpr:.1%} of the test split)",
        style="table.title",
    )
    table = _percentages(title, [Column("OOD set", overflow="fold")], _OF_A_SET)
    for name, values in found.table().iterrows():
        table.add_row(Text(str(name)), *(f"{100 * values[m]:.2f}" for m in _OF_A_SET))
    return table


def _percentages(title: Text, names: Sequence[Column], metrics: Sequence[str]) -> Table:
    from rich.table import Column, Table

    numbers = (Column(_TITLES[metric], justify="right") for metric in metrics)
    return Table(*names, *numbers, title=title, box=None, pad_edge=False)


def listed(asked: bool) -> None:
    """Print the detectors and stop, where that is asked for."""
    if not asked:
        return
    from greg_cert.detectors import DETECTORS

    for name, info in DETECTORS.items():
        screen.plain(f"{name:10s} {info.title}", f"{'':10s} {info.source}")
        for option in info.options:
            value = "auto" if option.default is None else option.default
            screen.plain(f"{'':10s} {option.name}={value}: {option.rule}")
    raise typer.Exit
