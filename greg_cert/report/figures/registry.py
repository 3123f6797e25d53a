"""The report's figures: name, drawing function and what the caption says.

`FIGURES` come from the certificates alone, `OOD_FIGURE` where there is an OOD side, `SCORE_FIGURE`
where the scores of all test samples are kept; `training_figure` needs the logs of the runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from greg_cert.certificates.results import Results
from greg_cert.certificates.summary_file import Summary
from greg_cert.report import wording
from greg_cert.report.figures.bands import draw_fraction, draw_ood_fpr
from greg_cert.report.figures.bracket import draw_bracket
from greg_cert.report.figures.gradient import draw_gradient
from greg_cert.report.figures.histogram import draw_histogram
from greg_cert.report.figures.scores import draw_scores
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.figures.training import draw_training
from greg_cert.report.names import check_names
from greg_cert.runs.training_log import TrainingLog


@dataclass(frozen=True)
class FigureSpec:
    """One figure of the report."""

    name: str  # stem of its files
    title: str
    draw: Callable[[Results, FigureStyle], Figure]
    text: str  # its caption, with places for `norm`, `ball`, `wrong`, `searched` and `tpr`
    of_samples: bool = True  # whether it is about the samples that were verified

    def caption(self, summary: Summary) -> str:
        """The caption for these results, saying what is proof, upper bound and estimate."""
        searched = "" if summary.max_radius is None else f" up to {summary.max_radius:g}"
        return self.text.format(
            norm=wording.norm_name(summary.norm),
            ball=wording.ball(summary),
            wrong=wording.wrong_side(summary),
            searched=searched,
            tpr=f"{100 * summary.tpr:g} %",
        )


FIGURES = (
    FigureSpec(
        "radius_histogram",
        "Certified radii",
        draw_histogram,
        "Certified {norm} radii (proof; {ball}). Vertical lines: medians over all samples, which "
        "the legend names; it counts the samples that are not drawn, because their radius is 0: "
        "{wrong} before any perturbation, or without a proof.",
    ),
    FigureSpec(
        "certified_fraction",
        "Certified fraction",
        draw_fraction,
        "Fraction of all samples that no {norm} perturbation within the radius can turn ({ball}). "
        "Solid: certified, a proven lower bound. Dashed: not yet broken by the attack, an upper "
        "bound. The true curve lies in the shaded band between them.",
    ),
    FigureSpec(
        "bracket",
        "Bracket of every sample",
        draw_bracket,
        "Certified {norm} radius (proof) against the smallest attack found (upper bound), one "
        "point a sample; the true radius lies between the two. On the line they meet; a point in "
        "the grey area would contradict a certificate. Ticks at the upper rim: no attack "
        "found{searched}. Samples {wrong} before any perturbation are left out.",
    ),
    FigureSpec(
        "gradient_vs_certified",
        "Gradient norm and certified radius",
        draw_gradient,
        "Dual norm of the score's gradient at the sample (estimate: it says nothing about the rest "
        "of the ball) against the certified {norm} radius (proof). Samples {wrong} before any "
        "perturbation are left out.",
    ),
)

OOD_FIGURE = FigureSpec(
    "ood_fpr",
    "OOD samples accepted under perturbation",
    draw_ood_fpr,
    "Share of all OOD samples accepted as ID when each is moved in the worst way within the {norm} "
    "radius ({ball}), mean over the OOD sets. Solid: certified, a proven upper bound. Dashed: "
    "accepted clean or by an attack, a lower bound. The true curve lies in the shaded band.",
)

SCORE_FIGURE = FigureSpec(
    "score_distribution",
    "Scores and the threshold",
    draw_scores,
    "The OOD score over all samples of the test sets, verified or not: share of the samples per "
    "bin, of OOD sets that are drawn as one their mean, the outermost bins with what lies beyond; "
    "the tallest bar that is cut at the top has its share beside it. A panel a run; the scores of "
    "two networks are not on one scale. Vertical line: the threshold \u03b3, which accepts {tpr} "
    "of the ID calibration split. The legend names the share accepted, at or below \u03b3. "
    "Measured on clean samples; nothing here is a proof.",
    of_samples=False,
)


def figure_specs(
    results: Results, logs: Mapping[str, TrainingLog], *, attack: bool = False
) -> list[FigureSpec]:
    """Every figure that there are data for; `logs` are those of the runs that measured slopes.

    `attack` is that of the figures' style.
    """
    radii = (
        " Light outlines: radii at which an attack succeeded (upper bound), where one was found."
    )
    histogram, *others = FIGURES
    specs = [replace(histogram, text=histogram.text + radii) if attack else histogram, *others]
    specs += [OOD_FIGURE] if results.ood is not None else []
    specs += [SCORE_FIGURE] if results.test_scores is not None else []
    specs += [training_figure(logs)] if logs else []
    return specs


def chosen_figures(specs: Sequence[FigureSpec], only: Sequence[str]) -> list[FigureSpec]:
    """The figures of these names, in the order of `specs`; all of them where none is named.

    Raises:
        UsageError: for a name that no figure has, or one that there are no data for.
    """
    here = {spec.name: spec for spec in specs}
    every = {spec.name for spec in (*FIGURES, OOD_FIGURE, SCORE_FIGURE, training_figure({}))}
    for name in only:
        why = ", for which there are no data" if name in every else ""
        check_names("--only", [name], list(here), why)
    return [spec for spec in specs if not only or spec.name in only]


def training_figure(logs: Mapping[str, TrainingLog]) -> FigureSpec:
    """The figure of the gradient norm over training, of some of a verification's runs or all."""
    return FigureSpec(
        "training_gradient",
        "Gradient norm over training",
        lambda results, style: draw_training(logs, results.runs, style),
        f"Mean {wording.norm_name(2)} norm of the score's input gradient over training batches "
        "(measured, no proof), and the product of layer norms that bounds it over all inputs (an "
        "estimate, from below), in score units per raw pixel unit. Points: single batches. Lines: "
        "running medians within a stage. Vertical lines: where a stage begins, named by its "
        "method. A logarithmic axis begins at the lowest hundredth of the values.",
        of_samples=False,
    )
