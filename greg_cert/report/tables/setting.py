"""The setting that made the numbers, for captions: thresholds, training, margins and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greg_cert.certificates.results import Results
from greg_cert.report import wording


def setting_words(results: Results) -> str:
    """The thresholds, then how the runs were trained, as far as that is recorded."""
    summary = results.summary
    gammas = {run: wording.number(summary.runs[run].threshold, "#.4g") for run in results.runs}
    gamma = "\u03b3 = {}"
    words = [
        f"The threshold \u03b3 accepts {100 * summary.tpr:g} % of the ID calibration split "
        f"(tpr = {summary.tpr:g}): {_by_run(gamma, gammas)}.",
    ]
    methods = {run: wording.one_line(summary.runs[run].method) for run in results.runs}
    margins = {run: _margins(results.manifest(run)) for run in results.runs}
    seeds = {run: _text(results.manifest(run).get("seed")) for run in results.runs}
    trained = [
        # A run that is named as its method says so already.
        _by_run("{}", methods) if any(methods[run] != run for run in results.runs) else "",
        _by_run("margins {}", margins),
        _by_run("seed {}", seeds),
    ]
    if any(trained):
        words.append(f"Training: {'; '.join(part for part in trained if part)}.")
    if summary.provenance.seed is not None:
        words.append(f"Seed of the verification: {_text(summary.provenance.seed)}.")
    return " ".join(words)


def _by_run(words: str, values: Mapping[str, str]) -> str:
    """A fact once where all runs have it in common, else each beside its run; "" without any."""
    names = wording.quoted_names(list(values))
    if len(set(values.values())) == 1:
        return words.format(value) if (value := next(iter(values.values()))) else ""
    of = {v: ", ".join(names[run] for run in values if values[run] == v) for v in values.values()}
    return words.format(", ".join(f"{value} ({runs})" for value, runs in of.items() if value))


def _margins(manifest: Mapping[str, Any]) -> str:
    """The energies that the last stage of training holds ID and OOD samples to."""
    stages = manifest.get("stages")
    last = stages[-1] if isinstance(stages, list) and stages else None
    found = [last.get(key) for key in ("m_in", "m_out")] if isinstance(last, dict) else []
    numbers = [wording.number(value, ".3g") for value in found if isinstance(value, int | float)]
    return "m_in = {}, m_out = {}".format(*numbers) if len(numbers) == 2 else ""


def _text(value: object) -> str:
    return "" if value is None else wording.one_line(str(value))
