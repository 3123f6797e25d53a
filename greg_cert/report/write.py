"""From a verification folder to a folder of tables, figures and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from greg_cert.certificates.results import Results, load_results
from greg_cert.errors import RunError, UsageError
from greg_cert.files import write_atomic
from greg_cert.report.figures.registry import FigureSpec, chosen_figures, figure_specs
from greg_cert.report.figures.render import Rendered, render
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.figures.training import SLOPE_TERMS
from greg_cert.report.latex.figures import latex_figures
from greg_cert.report.latex.tables import latex_table
from greg_cert.report.names import check_names, listed
from greg_cert.report.page.document import html_page
from greg_cert.report.page.pictures import Pictures, given_pictures, kept_pictures
from greg_cert.report.tables.comparison import compare
from greg_cert.report.tables.forms import markdown_table
from greg_cert.report.trained_runs import likely_folders, match_runs
from greg_cert.runs.training_log import TrainingLog, read_training_log

DEFAULT_TITLE = "Certified robustness of an OOD detector"
_DEFAULT_STYLE = FigureStyle()


@dataclass(frozen=True)
class FigureFiles:
    """The files of one figure; an SVG only where it was asked for."""

    png: Path
    pdf: Path
    svg: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        """Every file."""
        yield from (self.png, self.pdf)
        if self.svg is not None:
            yield self.svg


@dataclass(frozen=True)
class ReportFiles:
    """The paths of everything that `write_report` wrote, and what it had to leave out."""

    folder: Path
    html: Path
    markdown: Path
    latex: Path
    figures: dict[str, FigureFiles]
    latex_figures: Path
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Path]:
        """Every file, the page first."""
        yield from (self.html, self.markdown, self.latex, self.latex_figures)
        for files in self.figures.values():
            yield from files


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    style: FigureStyle = _DEFAULT_STYLE,
    images: Pictures | None = None,
    title: str = DEFAULT_TITLE,
    seed: int = 0,
    runs: Sequence[Path] | None = None,
    svg: bool = False,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> ReportFiles:
    """The report of a verification: page, tables, figures, and the figures as LaTeX floats.

    Writes `report.html`, `table.md`, `table.tex`, `figures.tex`, and a PNG and a PDF a figure.
    Beside the four figures of the certificates, the false-positive rate under perturbation is drawn
    where OOD samples were certified, the scores where those of all test samples are kept, and the
    gradient norm over training where the run folders are at hand.

    Each file is written whole or not at all, and equal inputs give equal bytes.

    Args:
        folder: holds `certificates.parquet` and `summary.json`, and perhaps
            `ood_certificates.parquet`, `ood_scores.parquet` and `scores.parquet`.
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
        svg: write each figure as SVG too.
        rows: the runs to show, in this order, by default all. p-values stay corrected for all runs,
            and a proof that an attack contradicts in any run is reported.
        columns: columns of the tables by their names, such as `certified`, in this order; by
            default all.

    Raises:
        RunError: the folder lacks something, or is damaged; or one of `runs` is no run of this
            verification, or its log is damaged.
        DataError: an image has the wrong shape, type or values.
        UsageError: `out` cannot be made or written; or no run or column has one of the names.
    """
    target = _target(folder, out)
    given = None if images is None else given_pictures(images)
    results = chosen_runs(load_results(Path(folder)), rows)
    pictures = kept_pictures(results) if given is None else given
    logs, notes = _training_logs(results, runs)
    comparisons = compare(results, seed=seed)
    markdown = markdown_table(results, comparisons, columns, title=title)
    latex = latex_table(results, comparisons, style.paper, columns)
    specs = figure_specs(results, logs, attack=style.attack)
    drawn = _drawn(specs, results, style, svg)
    figures = [(spec, drawn[spec.name].png) for spec in specs]
    page = html_page(results, comparisons, figures, pictures, title=title, columns=columns)
    floats = latex_figures(results, specs, style)
    with _writing(target):
        return ReportFiles(
            folder=target,
            html=write_atomic(target / "report.html", page),
            markdown=write_atomic(target / "table.md", markdown),
            latex=write_atomic(target / "table.tex", latex),
            latex_figures=write_atomic(target / "figures.tex", floats),
            figures=_write_figures(target, drawn),
            notes=notes,
        )


def write_figures(
    folder: Path,
    out: Path | None = None,
    *,
    only: Sequence[str] = (),
    style: FigureStyle = _DEFAULT_STYLE,
    runs: Sequence[Path] | None = None,
    svg: bool = False,
    rows: Sequence[str] = (),
) -> dict[str, FigureFiles]:
    """The figures named by `only`, all where empty; page and tables are left as they are.

    The other arguments are those of `write_report`. Returns the paths written, by figure.

    Raises:
        UsageError: for a name that no figure has, or one that there are no data for.
        RunError: as for `write_report`.
    """
    target = _target(folder, out)
    results = chosen_runs(load_results(Path(folder)), rows)
    logs, _ = _training_logs(results, runs)
    specs = chosen_figures(figure_specs(results, logs), only)
    drawn = _drawn(specs, results, style, svg)
    with _writing(target):
        return _write_figures(target, drawn)


def chosen_runs(results: Results, rows: Sequence[str]) -> Results:
    """The results of the runs named, in this order; all of them where none is.

    A name that no run has may be several, with commas between them.

    Raises:
        UsageError: for a name that no run has.
    """
    names = listed(rows, results.runs)
    check_names("--rows", names, results.runs)
    return results.only(names) if names else results


def _target(folder: Path, out: Path | None) -> Path:
    target = Path(folder) / "report" if out is None else Path(out)
    if target.exists() and not target.is_dir():
        raise UsageError(f"out {target}: expected a folder, but it is a file")
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(f"out {target}: cannot be written ({error.strerror or error})") from error


def _drawn(
    specs: Sequence[FigureSpec], results: Results, style: FigureStyle, svg: bool
) -> dict[str, Rendered]:
    return {spec.name: render(partial(spec.draw, results), style, svg=svg) for spec in specs}


def _write_figures(target: Path, drawn: Mapping[str, Rendered]) -> dict[str, FigureFiles]:
    return {
        name: FigureFiles(
            png=write_atomic(target / f"{name}.png", figure.png),
            pdf=write_atomic(target / f"{name}.pdf", figure.pdf),
            svg=write_atomic(target / f"{name}.svg", figure.svg) if figure.svg else None,
        )
        for name, figure in drawn.items()
    }


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
        if name in logs and any(map(logs[name].measured, SLOPE_TERMS))
    }
    return drawable, tuple(notes)
