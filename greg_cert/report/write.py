"""From a verification folder to a folder of tables, figures and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from greg_cert.errors import RunError, UsageError
from greg_cert.files import write_atomic
from greg_cert.report.canvas import render
from greg_cert.report.comparison import compare
from greg_cert.report.figure_training import GRADIENT_TERMS
from greg_cert.report.figures import FIGURES, OOD_FIGURE, training_figure
from greg_cert.report.gallery import gallery_of, read_gallery
from greg_cert.report.page import html_page
from greg_cert.report.pictures import Pictures
from greg_cert.report.results import Results, load_results
from greg_cert.report.rows import table_rows
from greg_cert.report.style import FigureStyle
from greg_cert.report.tables import latex_table, markdown_table
from greg_cert.report.training_log import (
    TrainingLog,
    likely_folders,
    match_runs,
    read_training_log,
)

DEFAULT_TITLE = "Certified robustness of an OOD detector"
_DEFAULT_STYLE = FigureStyle()


@dataclass(frozen=True)
class FigureFiles:
    """The two files of one figure."""

    png: Path
    pdf: Path


@dataclass(frozen=True)
class ReportFiles:
    """The paths of everything that `write_report` wrote, and what it had to leave out."""

    folder: Path
    html: Path
    markdown: Path
    latex: Path
    figures: dict[str, FigureFiles]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Path]:
        """Every file, the page first."""
        yield from (self.html, self.markdown, self.latex)
        for files in self.figures.values():
            yield from (files.png, files.pdf)


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    style: FigureStyle = _DEFAULT_STYLE,
    images: Pictures | None = None,
    title: str = DEFAULT_TITLE,
    seed: int = 0,
    runs: Sequence[Path] | None = None,
) -> ReportFiles:
    """The report of a verification: `report.html`, `table.md`, `table.tex` and the figures.

    Beside the four figures of the results, the false-positive rate under perturbation is drawn
    where OOD samples were certified, and the gradient norm over training where the run folders are
    at hand.

    Each file is written whole or not at all, and equal inputs give equal bytes.

    Args:
        folder: holds `certificates.parquet` and `summary.json`, and perhaps
            `ood_certificates.parquet` and `ood_scores.parquet`.
        out: where to write; by default `folder/report`. Made if absent.
        style: sizes and type of the figures.
        images: clean images, or (clean, adversarial) pairs, by (run, sample index); floats in
            [0, 1] of shape (H, W) or (H, W, 3). By default those of `folder/pictures.npz`, where
            `greg-cert verify` left the most and the least robust samples with their attacks.
        title: heading of the page.
        seed: seed of the bootstrap interval.
        runs: run folders of the verification, some or all, for the figure of training; by default
            they are looked for around `folder`, and a log that cannot be read is noted and left
            out.

    Returns:
        The paths written.

    Raises:
        RunError: the folder lacks something, or is damaged; or one of `runs` is no run of this
            verification, or its log is damaged.
        DataError: an image has the wrong shape, type or values.
        UsageError: `out` cannot be made or written.
    """
    target = Path(folder) / "report" if out is None else Path(out)
    if target.exists() and not target.is_dir():
        raise UsageError(f"out {target}: expected a folder, but it is a file")
    given = None if images is None else gallery_of(images)
    results = load_results(Path(folder))
    gallery = read_gallery(results) if given is None else given
    logs, notes = _training_logs(results, runs)
    rows, comparisons = table_rows(results), compare(results, seed=seed)
    specs = [*FIGURES]
    specs += [OOD_FIGURE] if results.ood is not None else []
    specs += [training_figure(logs)] if logs else []
    drawn = {spec.name: render(spec.draw, results, style) for spec in specs}
    pngs = {name: figure.png for name, figure in drawn.items()}
    page = html_page(results, rows, comparisons, pngs, gallery, title=title)
    markdown = markdown_table(results, rows, comparisons, title=title)
    latex = latex_table(results, rows, comparisons)
    try:
        target.mkdir(parents=True, exist_ok=True)
        return ReportFiles(
            folder=target,
            html=write_atomic(target / "report.html", page),
            markdown=write_atomic(target / "table.md", markdown),
            latex=write_atomic(target / "table.tex", latex),
            figures={
                name: FigureFiles(
                    png=write_atomic(target / f"{name}.png", figure.png),
                    pdf=write_atomic(target / f"{name}.pdf", figure.pdf),
                )
                for name, figure in drawn.items()
            },
            notes=notes,
        )
    except OSError as error:
        raise UsageError(f"out {target}: cannot be written ({error.strerror or error})") from error


def _training_logs(
    results: Results, runs: Sequence[Path] | None
) -> tuple[dict[str, TrainingLog], tuple[str, ...]]:
    """Logs that measured a gradient norm, by run, and why others are missing."""
    logs: dict[str, TrainingLog] = {}
    notes: list[str] = []
    if runs is not None:
        for path in runs:
            if not (found := match_runs(results, [Path(path)])):
                raise RunError(
                    f"run {path}: expected a folder of one of the verified runs "
                    f"{list(results.runs)}, unchanged since it was verified in {results.folder}"
                )
            logs |= {name: read_training_log(folder) for name, folder in found.items()}
    else:
        for name, folder in match_runs(results, likely_folders(results)).items():
            try:
                logs[name] = read_training_log(folder)
            except RunError as error:
                notes.append(f"run {name} is left out of the figure of training: {error}")
    drawable = {
        name: logs[name]
        for name in results.runs
        if name in logs and any(map(logs[name].measured, GRADIENT_TERMS))
    }
    return drawable, tuple(notes)
