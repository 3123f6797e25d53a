"""What `summary.json` says of one run, counted anew from the rows that are kept."""

from __future__ import annotations

from typing import Any

from greg_cert.certificates.certificate_counts import id_side, ood_sides, robust
from greg_cert.certificates.folder import Tables
from greg_cert.certificates.methods import RADIUS_METHOD, STOPPED_BY

_OF_ROWS = {
    *("samples", "status", "violations", "gradient_norm", "ood_side", "robust"),
    *(RADIUS_METHOD, STOPPED_BY, "seconds"),
    *(f"{name}_radius" for name in ("certified", "attack", "gradient", "lipschitz")),
}
_OF_RUN = {
    *("method", "score", "id_accuracy", "threshold", "fpr95", "fpr95_ood_recall", "auroc"),
    *("aupr_in", "aupr_out", "test_tpr", "ood", "audit"),
}


def recounted(record: dict[str, Any], rows: Tables, *, whole: bool) -> dict[str, Any]:
    """A run's entry of `summary.json` for these rows.

    Of the entry as it was, what does not depend on the rows is kept; what this module does not know
    of, only where these are the `whole` of the rows that the entry was about.
    """
    kept = {k: v for k, v in record.items() if k in _OF_RUN or (whole and k not in _OF_ROWS)}
    kept |= id_side(rows.certificates)
    if "ood_side" in record:
        kept["ood_side"] = ood_sides(rows.ood)
    if "robust" in record:
        radii = rows.bounds["radius"].unique() if len(rows.bounds) else map(float, record["robust"])
        kept["robust"] = {
            f"{r:g}": robust(rows.certificates, rows.ood, rows.bounds, r)
            for r in sorted({float(r) for r in radii})
        }
    return {**kept, "seconds": record.get("seconds")}
