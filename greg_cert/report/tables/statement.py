"""The result in a few plain sentences, built from the numbers and no kinder than they are."""

from __future__ import annotations

from dataclasses import replace

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.tables.comparison import Comparison, difference_words, rank_words
from greg_cert.report.tables.notes import warning
from greg_cert.report.tables.ood_statement import ood_statement
from greg_cert.report.tables.rows import Row

NAME_LIMIT = 32


def statement(results: Results, rows: list[Row], comparisons: list[Comparison]) -> str:
    """One paragraph: what is proven, how it compares, how tight it is, and whether it held."""
    baseline = results.summary.baseline
    names = wording.short_names(results.runs, NAME_LIMIT)
    rows = [replace(row, run=names[row.run]) for row in rows]
    comparisons = [replace(c, run=names[c.run]) for c in comparisons if c.main]
    baseline = None if baseline is None else names[baseline]
    alone = [row for row in rows if not comparisons or row.run == baseline]
    by_run = {row.run: row for row in rows}
    sentences = [f"Over {results.samples} {wording.population(results.summary)}, "]
    sentences[0] += "; ".join(_alone(results, row, row.run == baseline) for row in alone) + "."
    sentences += [_against(results, by_run[c.run], c) for c in comparisons]
    if not comparisons:
        sentences.append(
            "There is no baseline to compare with, so these numbers do not say whether training "
            "made the detector more robust."
        )
    sentences += [_accuracy(rows), *_tightness(rows), ood_statement(results)]
    alarm = warning(results)
    if alarm is None:
        sentences.append("No attack contradicted a certificate.")
    else:
        sentences.insert(0, alarm)
    return " ".join(sentence for sentence in sentences if sentence)


def _name(run: str) -> str:
    return f"“{run}”"


def _radius(results: Results, row: Row) -> str:
    digits = wording.radius_digits([row.certified_median, row.certified_mean])
    return wording.radius(row.certified_median, digits, results.summary.max_radius)


def _alone(results: Results, row: Row, is_baseline: bool) -> str:
    return (
        f"{'the baseline ' if is_baseline else ''}{_name(row.run)} has a median certified "
        f"{wording.norm_name(results.summary.norm)} radius of {_radius(results, row)} "
        f"({wording.percent(row.certified / row.samples, 1)} % of the samples carry a proof)"
    )


def _against(results: Results, row: Row, c: Comparison) -> str:
    lead = f"{_name(c.run)} has {_radius(results, row)}"
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
    parts = [f"{_name(row.run)} {wording.percent(row.id_accuracy)} %" for row in known]
    return f"ID accuracy: {', '.join(parts)}." if parts else ""


def _tightness(rows: list[Row]) -> list[str]:
    sentences = []
    parts = []
    for row in rows:
        attacked = row.samples - row.rejected
        part = f"{wording.percent(row.share, 0)} % for {_name(row.run)}"
        if row.attacks_found < attacked:
            part += f" (where an attack was found: {row.attacks_found} of {attacked})"
        if row.share is not None:
            parts.append(part)
    if parts:
        sentences.append(
            "In the median, the proven radius is this share of the radius at which an attack "
            f"succeeds: {', '.join(parts)}."
        )
    none = [_name(row.run) for row in rows if row.share is None and row.rejected < row.samples]
    if none:
        sentences.append(
            f"Nothing bounds the radii of {', '.join(none)} from above: no attack found."
        )
    return sentences
