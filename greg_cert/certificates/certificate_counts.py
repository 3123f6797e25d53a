"""What `summary.json` says of one run's rows of certificates: counts, medians, and at radii."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.certificates.certified_metrics import (
    adversarial_auroc,
    attacked_fpr,
    certified_acceptance,
    certified_fpr,
    guaranteed_auroc,
)
from greg_cert.certificates.format import REJECTED, STATUSES
from greg_cert.certificates.methods import RADIUS_METHOD, STOPPED_BY


def id_side(rows: pd.DataFrame) -> dict[str, Any]:
    """Counts and radii of the ID samples of one run; medians and means over all of them."""
    kept = rows["status"] != REJECTED
    over = rows["radius_gradient"] > rows["radius_attack"]
    return {
        **ood_side(rows),
        "gradient_radius": {
            **_spread(rows["radius_gradient"]),
            "above_attack": float(over[kept].mean()) if kept.any() else None,
        },
        "lipschitz_radius": _spread(rows["radius_lipschitz"]),
        "gradient_norm": _spread(rows["gradient_norm"]),
    }


def ood_side(rows: pd.DataFrame) -> dict[str, Any]:
    """Counts and radii of the samples of one OOD set; medians and means over all of them."""
    attack = rows["radius_attack"]
    return {
        "samples": len(rows),
        "status": {status: int((rows["status"] == status).sum()) for status in STATUSES},
        "certified_radius": _spread(rows["radius_certified"]),
        "attack_radius": {
            **_spread(attack),
            "found": int(np.isfinite(attack.to_numpy(float)).sum()),
        },
        "violations": int(rows["violation"].sum()),
        **_of_best(rows),
    }


def ood_sides(ood: pd.DataFrame) -> dict[str, Any]:
    """`ood_side` of each OOD set of one run."""
    groups = ood.groupby("dataset", sort=False) if len(ood) else ()
    return {str(name): ood_side(rows) for name, rows in groups}


def robust(
    rows: pd.DataFrame, ood: pd.DataFrame, ood_scores: pd.DataFrame, radius: float
) -> dict[str, Any]:
    """What holds of the samples within one radius; means over the OOD sets, GAUC and AAUC too.

    Of the certificates of one run on ID and on OOD samples, and the bounds and attacks of the
    scores of these; each may be empty.
    """
    found: dict[str, Any] = {}
    at = [radius]
    if len(rows):
        found["certified_acceptance"] = float(certified_acceptance(_of(rows, "certified"), at)[0])
    if len(ood):
        sets = [group for _, group in ood.groupby("dataset", sort=False)]
        proven = [certified_fpr(_of(s, "certified"), at)[0] for s in sets]
        attacked = [attacked_fpr(_of(s, "attack"), at)[0] for s in sets]
        found["certified_fpr"] = float(np.mean(proven))
        found["attacked_fpr"] = float(np.mean(attacked))
    if len(rows) and len(ood_scores):
        clean = rows["score"].to_numpy(dtype=float)
        here = ood_scores[ood_scores["radius"] == radius]
        groups = [group for _, group in here.groupby("dataset", sort=False)]
        bounds = [guaranteed_auroc(clean, s["score_bound"].to_numpy(float)) for s in groups]
        attacks = [adversarial_auroc(clean, s["score_attack"].to_numpy(float)) for s in groups]
        found["gauc"], found["aauc"] = float(np.mean(bounds)), float(np.mean(attacks))
    return found


def _of(rows: pd.DataFrame, name: str) -> np.ndarray:
    return rows[f"radius_{name}"].to_numpy(dtype=float)


def _of_best(rows: pd.DataFrame) -> dict[str, Any]:
    """How often each method gave the radius, and each reason ended the search, by `best`."""
    return {
        name: {str(value): int(count) for value, count in rows[name].value_counts().items()}
        for name in (RADIUS_METHOD, STOPPED_BY)
        if name in rows and rows[name].notna().any()
    }


def _spread(values: pd.Series[float]) -> dict[str, float | None]:
    """Median and mean; None for what is not finite, which JSON cannot say."""
    found = {"median": float(values.median()), "mean": float(values.mean())}
    return {k: v if math.isfinite(v) else None for k, v in found.items()}
