"""The result in a few plain sentences, built from the numbers and no kinder than they are."""

from __future__ import annotations

from dataclasses import replace

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.tables.comparison import Comparison, difference_words, rank_words
from greg_cert.report.tables.notes import warning
from greg_cert.report.tables.ood_rows import BallRow, ball_rows
from greg_cert.report.tables.rows import Row, table_rows


def statement(results: Results, comparisons: list[Comparison]) -> str:
    """One paragraph: what is proven, how it compares, how tight it is, and whether it held."""
    names = wording.quoted_names(results.runs)
    rows = [replace(row, run=names[row.run]) for row in table_rows(results)]
    comparisons = [replace(c, run=names[c.run]) for c in comparisons if c.main]
    baseline = results.summary.baseline
    baseline = None if baseline is None else names[baseline]
    alone = [row for row in rows if not comparisons or row.run == baseline]
    by_run = {row.run: row for row in rows}
    sentences = [f"Over {results.samples} {wording.population(results.summary)}, "]
    sentences[0] += "; ".join(_alone(results, row, row.run == baseline) for row in alone) + "."
    sentences += [_against(results, by_run[c.run], c) for c in comparisons]
    if not comparisons:
        sentences.append(
            "There is no baseline to compare with here, so these numbers do not say whether "
            "training made the detector more robust."
        )
    sentences += [_accuracy(rows), *_tightness(rows), _ood_side(results)]
    alarm = warning(results)
    if alarm is None:
        sentences.append("No attack contradicted a certificate.")
    else:
        sentences.insert(0, alarm)
    return " ".join(sentence for sentence in sentences if sentence)


def _radius(results: Results, row: Row) -> str:
    digits = wording.radius_digits([row.certified_median, row.certified_mean])
    return wording.radius(row.certified_median, digits, results.summary.max_radius)


def _alone(results: Results, row: Row, is_baseline: bool) -> str:
    return (
        f"{'the baseline ' if is_baseline else ''}{row.run} has a median certified "
        f"{wording.norm_name(results.summary.norm)} radius of {_radius(results, row)} "
        f"({wording.percent(row.certified / row.samples, 1)} % of the samples carry a proof)"
    )


def _against(results: Results, row: Row, c: Comparison) -> str:
    lead = f"{c.run} has {_radius(results, row)}"
    beside = f"{difference_words(c)}; {rank_words(c)}"
    if c.ratio is None:
        return f"{lead}; the ratio is undefined, because the baseline's median is 0 ({beside})."
    if c.low is None or c.high is None:
        times = f"{c.ratio:.3g} times the baseline's, without an interval to judge that by"
        return f"{lead}, {times} ({beside})."
    inside = f"95 % paired bootstrap interval {c.low:.3g} to {c.high:.3g}; {beside}"
    if not c.clear:
        return f"{lead}, {c.ratio:.3g} times the baseline's: no clear difference ({inside})."
    direction = "larger" if c.ratio > 1 else "smaller"
    return f"{lead}, which is {direction}: {c.ratio:.3g} times the baseline's ({inside})."


def _accuracy(rows: list[Row]) -> str:
    known = [row for row in rows if row.id_accuracy is not None]
    parts = [f"{row.run} {wording.percent(row.id_accuracy)} %" for row in known]
    return f"ID accuracy: {', '.join(parts)}." if parts else ""


def _tightness(rows: list[Row]) -> list[str]:
    sentences = []
    parts = []
    for row in rows:
        attacked = row.samples - row.wrong
        part = f"{wording.percent(row.share, 0)} % for {row.run}"
        if row.attacks_found < attacked:
            part += f" (where an attack was found: {row.attacks_found} of {attacked})"
        if row.share is not None:
            parts.append(part)
    if parts:
        sentences.append(
            "In the median, the proven radius is this share of the radius at which an attack "
            f"succeeds: {', '.join(parts)}."
        )
    none = [row.run for row in rows if row.share is None and row.wrong < row.samples]
    if none:
        sentences.append(
            f"Nothing bounds the radii of {', '.join(none)} from above: no attack found."
        )
    return sentences


def _ood_side(results: Results) -> str:
    """How often OOD samples can be accepted under perturbation; empty where nothing is known.

    The radius is the middle one of the fixed radii, and the OOD set the one with the largest proven
    false-positive rate, so that no other set of the run is worse by the proof.
    """
    names = wording.quoted_names(results.runs)
    rows = [row for row in ball_rows(results) if row.certified_fpr is not None]
    if not rows:
        return ""
    radii = sorted({row.radius for row in rows})
    radius = radii[len(radii) // 2]
    parts = []
    for run in results.runs:
        mine = [row for row in rows if row.run == run and row.radius == radius]
        if mine:
            worst = max(mine, key=lambda row: (row.certified_fpr or 0.0, row.attacked_fpr or 0.0))
            parts.append(_on_set(names[run], worst, len(mine)))
    within = wording.fixed_radius(radius, results.summary.norm)
    norm = wording.norm_name(results.summary.norm)
    return f"OOD side, within an {norm} radius of {within}: {'; '.join(parts)}."


def _on_set(name: str, row: BallRow, sets: int) -> str:
    where = f"\u201c{wording.one_line(row.dataset)}\u201d"
    if sets > 1:
        where += f", its worst of {sets} OOD sets by the proof"
    low = wording.percent(row.attacked_fpr, 1)
    if row.certified_fpr is None or row.certified_fpr >= 1.0:
        text = f"nothing is proven for {name}, and an attack makes it accept {low} % of {where}"
    else:
        high = wording.percent(row.certified_fpr, 1)
        text = (
            f"{name} accepts as ID at most {high} % (proof) and at least {low} % (attack) of "
            f"{where}"
        )
    if row.guaranteed is None:
        return text
    joint = ", there with" if sets > 1 else ", with"
    return (
        f"{text}{joint} a guaranteed AUROC of {wording.percent(row.guaranteed, 1)} % "
        f"(clean {wording.percent(row.auroc, 1)} %)"
    )
