"""What made the numbers, for captions: thresholds, training, and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greg_cert.certificates.results import Results
from greg_cert.report import wording

_WEIGHTS = {"lambda_score": "λ_S", "lambda_grad": "λ_∇", "lambda_lipschitz": "λ_L"}


def threshold_words(results: Results) -> str:
    """What the threshold is and what it accepts."""
    tpr = results.summary.tpr
    gammas = {
        run: wording.number(results.summary.runs[run].threshold, "#.4g") for run in results.runs
    }
    return (
        f"The threshold \u03b3 accepts {100 * tpr:g} % of the ID calibration split "
        f"(tpr = {tpr:g}): " + _by_run("\u03b3 = {}.", gammas)
    )


def training_words(results: Results) -> str:
    """Methods, margins and weights that the runs were trained with, as far as recorded."""
    methods = {run: wording.one_line(results.summary.runs[run].method) for run in results.runs}
    last = {run: _last_stage(results.manifest(run)) for run in results.runs}
    trained = [
        # A run that is named as its method says so already.
        _by_run("{}", methods) if any(methods[run] != run for run in results.runs) else "",
        _by_run("margins {}", {run: _margins(stage) for run, stage in last.items()}),
        _by_run("weights {}", {run: _weights(stage) for run, stage in last.items()}),
    ]
    return f"Training: {'; '.join(part for part in trained if part)}." if any(trained) else ""


def seed_words(results: Results) -> str:
    """Seeds of the training and the verification, as far as they are recorded."""
    training = _by_run(
        "training {}", {r: _text(results.manifest(r).get("seed")) for r in results.runs}
    )
    seed = _text(results.summary.provenance.seed)
    parts = [part for part in (training, f"verification {seed}" if seed else "") if part]
    return f"Seeds: {', '.join(parts)}." if parts else ""


def _by_run(words: str, values: Mapping[str, str]) -> str:
    """A fact once where all runs have it in common, else each beside its run; "" without any."""
    names = wording.quoted_names(list(values))
    if len(set(values.values())) == 1:
        return words.format(value) if (value := next(iter(values.values()))) else ""
    of = {v: ", ".join(names[run] for run in values if values[run] == v) for v in values.values()}
    return words.format(", ".join(f"{value} ({runs})" for value, runs in of.items() if value))


def _last_stage(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is recorded of the last stage of training."""
    stages = manifest.get("stages")
    last = stages[-1] if isinstance(stages, list) and stages else None
    return last if isinstance(last, dict) else {}


def _margins(stage: Mapping[str, Any]) -> str:
    """The energies that a stage holds ID and OOD samples to."""
    found = [stage.get(key) for key in ("m_in", "m_out")]
    numbers = [wording.number(value, ".3g") for value in found if isinstance(value, int | float)]
    return "m_in = {}, m_out = {}".format(*numbers) if len(numbers) == 2 else ""


def _weights(stage: Mapping[str, Any]) -> str:
    """Weights of the penalties in a stage's loss."""
    found = {symbol: stage.get(setting) for setting, symbol in _WEIGHTS.items()}
    return ", ".join(
        f"{symbol} = {wording.number(value, '.3g')}"
        for symbol, value in found.items()
        if isinstance(value, int | float)
    )


def _text(value: object) -> str:
    return "" if value is None else wording.one_line(str(value))
