"""The table of a setting's values: what each costs and gains, on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from greg_cert.certificates.methods import PROOF, UPPER
from greg_cert.frames import frame_csv
from greg_cert.report import wording
from greg_cert.report.tables.sheets import CHECK, MEASURED, Column, Sheet, make_sheet
from greg_cert.runs.tuned_runs import NUMBERS, TunedRun, TunedValue


def tradeoff_sheet(
    setting: str, values: Sequence[TunedValue], *, norm: float, tpr: float, max_radius: float
) -> Sheet:
    """A row a value; means and deviations where there are several seeds.

    The threshold accepts `tpr` of the calibration split; radii are capped at `max_radius`.
    """
    medians = [v.mean[f"radius_{k}"] for v in values for k in ("certified", "attack", "lipschitz")]
    digits = wording.radius_digits([m for m in medians if m is not None])

    def radius(name: str) -> Callable[[TunedValue], str]:
        return _cell(name, lambda number: wording.radius(number, digits, max_radius))

    three, four = "{:.3f}".format, "{:.4f}".format
    fpr = wording.fpr_name(tpr)
    unit = f"median {wording.norm_name(norm)} radius"
    gap = "(\u03b3 \u2212 S)/L̄"
    training = _cell("train_cpu_seconds", _seconds, std=False)
    certifying = _cell("certify_cpu_seconds", _seconds, std=False)
    columns = [
        Column(MEASURED, "accuracy", "acc.", _cell("accuracy", three)),
        Column(MEASURED, "AUROC", "AUROC", _cell("auroc", four)),
        Column(MEASURED, fpr, fpr, _cell("fpr", three)),
        Column(MEASURED, "ECE", "ECE", _cell("calibration_error", three)),
        Column(PROOF, f"certified, {unit}", "proof", radius("radius_certified")),
        Column(UPPER, f"attack, {unit}", "attack", radius("radius_attack")),
        Column(CHECK, "certified / attack, median", "share", _cell("share", three)),
        Column(PROOF, f"{gap}, {unit}", gap.replace(" ", ""), radius("radius_lipschitz")),
        Column(MEASURED, "training, CPU s", "train s", training),
        Column(MEASURED, "certifying a sample, CPU s", "each s", certifying),
    ]
    if all(v.mean["auroc"] is None for v in values):
        columns = [c for c in columns if c.title not in ("AUROC", fpr)]
    remarks = [f"{setting} = {v.value}: {error}" for v in values for error in v.errors]
    remarks += [
        f"{setting} = {v.value}: {capped:g} radii a run are as large as was looked for "
        f"(verify.max_radius = {max_radius:g}), so medians may be larger"
        for v in values
        if (capped := v.mean["capped"])
    ]
    remarks += [
        f"{setting} = {v.value}: {undecided:.3g} accepted samples a run have no certificate, and "
        "count as radius 0"
        for v in values
        if (undecided := v.mean["undecided"])
    ]
    samples = max((v.mean["samples"] or 0 for v in values), default=0)
    runs = max((v.runs for v in values), default=0)
    caption = (
        f"Values of {setting}, on calibration data alone: accuracy, threshold and calibration "
        f"error (ECE, 15 bins) of the calibration split, AUROC and {fpr} of it against auxiliary "
        f"images that were held out, medians over the accepted ones of {samples:g} calibration "
        "samples, those without a certificate as 0."
    )
    if runs > 1:
        caption += f" ±: sample standard deviation over {runs} seeds."
    return make_sheet(
        "greg-cert-tune",
        setting,
        {setting: lambda v: v.value},
        columns,
        values,
        caption=caption,
        remarks=remarks,
    )


def tradeoff_csv(setting: str, runs: Sequence[TunedRun]) -> str:
    """A row a run, with all its numbers; an empty cell where there is none."""
    rows = [
        {setting: r.value, "seed": r.seed}
        | {name: r.numbers.get(name) for name in NUMBERS}
        | {"error": r.error}
        for r in runs
    ]
    return frame_csv(pd.DataFrame(rows))


def _cell(
    name: str, shown: Callable[[float], str], *, std: bool = True
) -> Callable[[TunedValue], str]:
    def cell(value: TunedValue) -> str:
        mean, deviation = value.mean[name], value.std[name]
        if mean is None:
            return wording.MISSING
        if deviation is None or not std:
            return shown(mean)
        return f"{shown(mean)} ± {shown(deviation)}"

    return cell


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
