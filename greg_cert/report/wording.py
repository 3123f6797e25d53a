"""The words, symbols and number formats that the table, the figures and the page share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from greg_cert.certificates.summary_file import Summary
from greg_cert.errors import one_line as one_line
from greg_cert.scores import SCORES

MISSING = "\u2013"


def norm_name(norm: float) -> str:
    """The norm as plain text: ℓ1, ℓ2 or ℓ∞."""
    return "\u2113∞" if math.isinf(norm) else f"\u2113{norm:g}"


def norm_tex(norm: float) -> str:
    """The norm as mathematics, for LaTeX and for figure labels."""
    return r"$\ell_\infty$" if math.isinf(norm) else rf"$\ell_{{{norm:g}}}$"


def population(summary: Summary) -> str:
    """What the samples are."""
    return "ID test samples" if summary.side == "id" else "OOD test samples"


def right_side(summary: Summary) -> str:
    """What a sample is that keeps its side, in words that fit what is certified."""
    right = "accepted as ID" if summary.side == "id" else "rejected as OOD"
    return f"{right} and correctly classified" if summary.correct else right


def wrong_side(summary: Summary) -> str:
    """What a sample of status `rejected` is, in words that fit what is certified."""
    wrong = "rejected" if summary.side == "id" else "accepted as ID"
    return f"{wrong} or misclassified" if summary.correct else wrong


def score_name(score: str) -> str:
    """A score in words; an unknown one by its own name."""
    return SCORES[score].title if score in SCORES else one_line(score)


def score_names(summary: Summary) -> str:
    """The score in words; that of each run where they differ."""
    if not summary.several_scores:
        return score_name(next(iter(summary.scores.values())))
    names = short_names(list(summary.scores), 32)
    return ", ".join(f"{names[run]}: {score_name(score)}" for run, score in summary.scores.items())


def ball(summary: Summary) -> str:
    """How the perturbation ball was taken."""
    return "ball clipped to [0,1]" if summary.clip else "ball not clipped"


def fpr_name(tpr: float) -> str:
    """The false-positive rate's name at this true-positive rate."""
    return f"FPR{100 * tpr:g}"


def number(value: float, form: str = "g") -> str:
    """A number in a form of `format`, with the sign that print has for minus."""
    return format(value, form).replace("-", "\u2212")


def count(number: int, noun: str) -> str:
    """A count with its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in per cent without the sign, or a dash where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def radius_digits(values: Sequence[float]) -> int:
    """Decimals that show three figures of the largest finite radius; at least 3, at most 7."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest <= 0 else min(7, max(3, 2 - math.floor(math.log10(largest))))


def radius(value: float | None, digits: int, max_radius: float | None) -> str:
    """A radius; an infinite one means that the search found nothing, and up to where it looked."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "none" if max_radius is None else f"none ≤ {max_radius:g}"
    return f"{value:.{digits}f}"


def fixed_radius(value: float, norm: float) -> str:
    """A radius that was chosen, not measured; of the maximum norm in steps of grey where it is."""
    steps = round(255 * value)
    if math.isinf(norm) and steps > 0 and math.isclose(255 * value, steps, rel_tol=1e-6):
        return f"{steps}/255"
    return f"{value:.4g}"


def confidence(alpha: float) -> str:
    """The confidence 1 - alpha in per cent, never rounded up to certainty."""
    digits = max(0, -math.floor(math.log10(alpha)) - 2) + 1
    return f"{100 * (1 - alpha):.{digits}f}".rstrip("0").rstrip(".") + " %"


def p_value(p: float) -> str:
    """A p-value to two figures; one too small for a float is given as a bound."""
    return "p < 1e-300" if p < 1e-300 else f"p = {p:.2g}"


def class_name(summary: Summary, label: object) -> str:
    """A class by its name and number; by its number where there is no name, or no other one."""
    number = one_line(str(label))
    if isinstance(label, Integral) and 0 <= int(label) < len(summary.classes):
        name = one_line(summary.classes[int(label)])
        if name and name != number:
            return f"{name} ({number})"
    return number


def quoted_names(runs: Sequence[str]) -> dict[str, str]:
    """Names of runs for a sentence: short, and in quotation marks."""
    return {run: f"\u201c{name}\u201d" for run, name in short_names(runs, 32).items()}


def short_names(names: Sequence[str], limit: int) -> dict[str, str]:
    """Names cut in their middle to `limit` characters, still different from one another."""
    taken: set[str] = set()
    short: dict[str, str] = {}
    for name in names:
        line = one_line(name) or "(no name)"
        cut = _middle(line, limit)
        number = 2
        while cut in taken:
            tail = f" #{number}"
            cut = _middle(line, limit - len(tail)) + tail
            number += 1
        taken.add(cut)
        short[name] = cut
    return short


def _middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"
