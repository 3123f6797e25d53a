"""The OOD side in a sentence a run: the worst OOD set by the proof, at one radius."""

from __future__ import annotations

from greg_cert.certificates.results import Results
from greg_cert.report import wording
from greg_cert.report.tables.ood_rows import BallRow, ball_rows

NAME_LIMIT = 32


def ood_statement(results: Results) -> str:
    """How often OOD samples can be accepted under perturbation; empty where nothing is known.

    The radius is the middle one of the fixed radii, and the OOD set the one with the largest proven
    false-positive rate, so that no other set of the run is worse by the proof.
    """
    names = wording.short_names(results.runs, NAME_LIMIT)
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
            parts.append(_part(f"\u201c{names[run]}\u201d", worst, len(mine)))
    within = wording.fixed_radius(radius, results.summary.norm)
    norm = wording.norm_name(results.summary.norm)
    return f"OOD side, within an {norm} radius of {within}: {'; '.join(parts)}."


def _part(name: str, row: BallRow, sets: int) -> str:
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
