"""Post-hoc detectors on top of trained runs: what each adds to the run's own score."""

from __future__ import annotations

import time
from typing import Any

from greg_cert.data import DataSplits
from greg_cert.detectors import DETECTORS
from greg_cert.errors import GregCertError
from greg_cert.evaluation import Evaluator
from greg_cert.runs.records import RunFolder, environment

RUNS = ("energy", "greg+")
_LEFT_OUT = ("certified-energy-l2",)  # as `certified-energy`, at several times its cost


def detectors(run: RunFolder, splits: DataSplits) -> dict[str, Any]:
    """AUROC and FPR95 of each OOD set by post-hoc detectors, with their published defaults."""
    evaluator = Evaluator(run.path, splits, scores=False)
    found: dict[str, Any] = {}
    for name in (None, *(name for name in DETECTORS if name not in _LEFT_OUT)):
        begun = time.process_time()
        try:
            sets = evaluator.detection(name).sets
        except GregCertError as error:
            found[name or "own"] = {"error": str(error)}
            continue
        found[name or "own"] = {
            "seconds": round(time.process_time() - begun, 1),
            "ood": {s: {m: values[m] for m in ("auroc", "fpr95")} for s, values in sets.items()},
        }
    return {
        "run": run.config.title,
        "weights": run.weights_digest,
        "groups": evaluator.groups,
        "detectors": found,
        **environment("cpu, one thread"),
    }
