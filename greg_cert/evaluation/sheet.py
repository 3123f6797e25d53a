"""The table of an evaluation, ready for Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from greg_cert.evaluation.seeds import Evaluated, SeedMean
from greg_cert.report.tables.sheets import MEASURED, Column, Sheet, make_sheet
from greg_cert.report.wording import MISSING

_TITLES = {
    "id_accuracy": ("ID accuracy, %", "ID acc."),
    "calibration_error": ("calibration error, %", "ECE"),
    "near_fpr95": ("near OOD: FPR95, %", "near FPR95"),
    "near_auroc": ("near OOD: AUROC, %", "near AUROC"),
    "far_fpr95": ("far OOD: FPR95, %", "far FPR95"),
    "far_auroc": ("far OOD: AUROC, %", "far AUROC"),
    "fpr95": ("FPR95 (ID recall), %", "FPR95"),
    "fpr95_ood_recall": ("FPR95 (OOD recall), %", "FPR95, OOD rec."),
    "auroc": ("AUROC, %", "AUROC"),
    "aupr_in": ("AUPR in, %", "AUPR-in"),
    "aupr_out": ("AUPR out, %", "AUPR-out"),
}


@dataclass(frozen=True)
class _Record:
    names: tuple[str, str]
    mean: Mapping[str, float]
    std: Mapping[str, float] | None


def evaluation_sheet(rows: Sequence[Evaluated], means: Sequence[SeedMean]) -> Sheet:
    """A row for each run and detector, then one for each mean over seeds."""
    records = [_Record((row.run, row.detection.detector), row.numbers(), None) for row in rows]
    records += [
        _Record((f"{m.title} (mean of {len(m.seeds)} runs)", m.detector), m.mean, m.std)
        for m in means
    ]
    columns = [
        Column(MEASURED, title, short, _cell(key))
        for key, (title, short) in _TITLES.items()
        if any(key in record.mean for record in records)
    ]
    sets = list(dict.fromkeys(name for row in rows for name in row.detection.sets))
    return make_sheet(
        "greg-cert-evaluation",
        "Evaluation",
        {"run": lambda record: record.names[0], "detector": lambda record: record.names[1]},
        columns,
        records,
        caption=_caption(rows, means, sets),
    )


def _cell(key: str) -> Callable[[_Record], str]:
    def cell(record: _Record) -> str:
        if key not in record.mean:
            return MISSING
        text = f"{100 * record.mean[key]:.2f}"
        return text if record.std is None else f"{text} ± {100 * record.std[key]:.2f}"

    return cell


def _caption(rows: Sequence[Evaluated], means: Sequence[SeedMean], sets: Sequence[str]) -> str:
    samples = sorted({len(row.predictions.label) for row in rows})
    words = [
        f"Classification and OOD detection on {' or '.join(map(str, samples))} ID test samples"
        + (f" and the OOD sets {', '.join(sets)} (unweighted means)." if sets else "."),
        "ECE: expected calibration error, 15 bins. FPR95: OOD samples accepted where 95 % of ID "
        "samples are; with OOD recall (OpenOOD's direction): ID samples rejected where 95 % of OOD "
        "samples are. AUPR-in and -out: ID and OOD as the positive class.",
    ]
    if means:
        words.append("±: sample standard deviation over runs that differ in their seed alone.")
    return " ".join(words)
