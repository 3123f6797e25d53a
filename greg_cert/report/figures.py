"""The report's figures: name, drawing function and what the caption says.

`FIGURES` come from the verification alone, `OOD_FIGURE` where it has an OOD side; `training_figure`
needs the logs of its runs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greg_cert.report import wording
from greg_cert.report.canvas import Draw
from greg_cert.report.figure_bracket import draw_bracket
from greg_cert.report.figure_fraction import draw_fraction
from greg_cert.report.figure_gradient import draw_gradient
from greg_cert.report.figure_histogram import draw_histogram
from greg_cert.report.figure_ood import draw_ood_fpr
from greg_cert.report.figure_training import GRADIENT_TERMS, draw_training
from greg_cert.report.summary_file import Summary
from greg_cert.report.training_log import TrainingLog


@dataclass(frozen=True)
class FigureSpec:
    """One figure of the report.

    Attributes:
        name: stem of its files.
        title: its title on the page.
        draw: the function that draws it.
        text: its caption, with places for `norm`, `ball`, `wrong` and `searched`.
    """

    name: str
    title: str
    draw: Draw
    text: str

    def caption(self, summary: Summary) -> str:
        """The caption for these results, saying what is proof, upper bound and estimate."""
        searched = "" if summary.max_radius is None else f" up to {summary.max_radius:g}"
        return self.text.format(
            norm=wording.norm_name(summary.norm),
            ball=wording.ball(summary),
            wrong=wording.wrong_side(summary),
            searched=searched,
        )


FIGURES = (
    FigureSpec(
        "radius_histogram",
        "Certified radii",
        draw_histogram,
        "Certified {norm} radii (proof; {ball}). Vertical lines: medians over all samples. The "
        "legend counts the samples that are not drawn, because their radius is 0: {wrong} before "
        "any perturbation, or without a proof.",
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


def training_figure(logs: Mapping[str, TrainingLog]) -> FigureSpec:
    """The figure of the gradient norm over training, for runs of a verification.

    Args:
        logs: the runs' rows of training by run; some of the verification's runs, or all. At least
            one has measured a gradient norm.
    """
    terms = [t for t in GRADIENT_TERMS if any(log.measured(t) for log in logs.values())]
    return FigureSpec(
        "training_gradient",
        "Gradient norm over training",
        lambda results, style: draw_training(logs, style, terms=terms, among=results.runs),
        f"Mean {wording.norm_name(2)} norm of the score's input gradient over training batches "
        "(measured, no proof), in score units per raw pixel unit. Points: single batches. Lines: "
        "running medians within a stage. Vertical lines: where a stage begins, named by its "
        "method. A logarithmic axis begins at the lowest hundredth of the values.",
    )
