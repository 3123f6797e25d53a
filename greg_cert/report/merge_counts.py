"""What `summary.json` says of one run, counted anew from the rows that are kept.

The same numbers as `greg_cert.verify.tables` writes, here without torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.certified_metrics import (
    adversarial_auroc,
    attacked_fpr,
    certified_acceptance,
    certified_fpr,
    guaranteed_auroc,
)
from greg_cert.report.frame_file import STATUSES

_OF_ROWS = {"samples", "status", "violations", "gradient_norm", "ood_side", "robust"} | {
    f"{name}_radius" for name in ("certified", "attack", "gradient", "lipschitz")
}
_OF_RUN = {
    *("method", "score", "id_accuracy", "threshold", "fpr95", "fpr95_ood_recall", "auroc"),
    *("aupr_in", "aupr_out", "test_tpr", "ood", "seconds", "audit"),
}


def recounted(
    record: dict[str, Any],
    rows: pd.DataFrame,
    ood: pd.DataFrame | None,
    ood_scores: pd.DataFrame | None,
    *,
    whole: bool,
) -> dict[str, Any]:
    """A run's entry of `summary.json` for these rows.

    Args:
        record: the entry as it was; what does not depend on the rows is kept.
        rows: the run's certificates.
        ood: its certificates of OOD samples.
        ood_scores: bounds of their scores.
        whole: whether these are all rows that the entry was about; else what this module does not
            know of is dropped.
    """
    kept = {k: v for k, v in record.items() if k in _OF_RUN or (whole and k not in _OF_ROWS)}
    kept |= _id_side(rows)
    if "ood_side" in record:
        groups = () if ood is None else ood.groupby("dataset", sort=False)
        kept["ood_side"] = {str(name): _ood_side(group) for name, group in groups}
    if "robust" in record:
        radii = {float(key) for key in record["robust"]}
        if ood_scores is not None:
            radii = {float(r) for r in ood_scores["radius"].unique()}
        kept["robust"] = {f"{r:g}": _robust(rows, ood, ood_scores, r) for r in sorted(radii)}
    return {**{k: v for k, v in kept.items() if k != "seconds"}, "seconds": record.get("seconds")}


def _id_side(rows: pd.DataFrame) -> dict[str, Any]:
    kept = rows["status"] != "rejected"
    over = rows["radius_gradient"] > rows["radius_attack"]
    return {
        "samples": len(rows),
        "status": _statuses(rows),
        "certified_radius": _spread(rows["radius_certified"]),
        "attack_radius": _found(rows["radius_attack"]),
        "gradient_radius": {
            **_spread(rows["radius_gradient"]),
            "above_attack": float(over[kept].mean()) if kept.any() else None,
        },
        "lipschitz_radius": _spread(rows["radius_lipschitz"]),
        "gradient_norm": _spread(rows["gradient_norm"]),
        "violations": int(rows["violation"].sum()),
    }


def _ood_side(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "samples": len(rows),
        "status": _statuses(rows),
        "certified_radius": _spread(rows["radius_certified"]),
        "attack_radius": _found(rows["radius_attack"]),
        "violations": int(rows["violation"].sum()),
    }


def _robust(
    rows: pd.DataFrame, ood: pd.DataFrame | None, ood_scores: pd.DataFrame | None, radius: float
) -> dict[str, Any]:
    """What holds within one radius; means over the OOD sets."""
    at = [radius]
    found = {"certified_acceptance": float(certified_acceptance(_of(rows, "certified"), at)[0])}
    if ood is not None and len(ood):
        sets = [group for _, group in ood.groupby("dataset", sort=False)]
        proven = [certified_fpr(_of(s, "certified"), at)[0] for s in sets]
        attacked = [attacked_fpr(_of(s, "attack"), at)[0] for s in sets]
        found["certified_fpr"] = float(np.mean(proven))
        found["attacked_fpr"] = float(np.mean(attacked))
    if ood_scores is not None and len(ood_scores):
        clean = rows["score"].to_numpy(dtype=float)
        here = ood_scores[ood_scores["radius"] == radius]
        groups = [group for _, group in here.groupby("dataset", sort=False)]
        bounds = [guaranteed_auroc(clean, s["score_bound"].to_numpy(float)) for s in groups]
        attacks = [adversarial_auroc(clean, s["score_attack"].to_numpy(float)) for s in groups]
        found["gauc"], found["aauc"] = float(np.mean(bounds)), float(np.mean(attacks))
    return found


def _of(rows: pd.DataFrame, name: str) -> np.ndarray:
    return rows[f"radius_{name}"].to_numpy(dtype=float)


def _statuses(rows: pd.DataFrame) -> dict[str, int]:
    return {s: int((rows["status"] == s).sum()) for s in STATUSES}


def _found(radii: pd.Series[float]) -> dict[str, Any]:
    return {**_spread(radii), "found": int(np.isfinite(radii.to_numpy(dtype=float)).sum())}


def _spread(values: pd.Series[float]) -> dict[str, float | None]:
    """Median and mean; None for what is not finite, which JSON cannot say."""
    found = {"median": float(values.median()), "mean": float(values.mean())}
    return {k: v if math.isfinite(v) else None for k, v in found.items()}
