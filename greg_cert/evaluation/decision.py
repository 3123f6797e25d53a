"""The threshold that decides one image, kept beside the run so that its data are read once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greg_cert.digests import check_seal, sealed, tell_unchecked
from greg_cert.errors import DamagedFileWarning, RunError
from greg_cert.evaluation.evaluator import Evaluator
from greg_cert.files import read_json, write_atomic
from greg_cert.runs.records import package_versions
from greg_cert.runs.subjects import Subject, common_data

if TYPE_CHECKING:
    import torch

_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """What accepts an image as in-distribution."""

    score: str  # one of `greg_cert.scores.SCORES`
    tpr: float  # share of the calibration split that is accepted
    threshold: float  # γ; accepted iff the score is ≤ γ
    calibration_samples: int  # how many set it
    num_classes: int  # ID classes
    classes: tuple[str, ...] | None  # their names, where the data have any

    def name_of(self, label: int) -> str:
        """A class by its name, or by its number."""
        return str(label) if self.classes is None else self.classes[label]


def decision_of(subject: Subject, tpr: float, device: torch.device | None = None) -> Decision:
    """γ of a run's own score, from its calibration split.

    It is kept in the run folder, and read from there while weights, data and versions are the same
    and the file is as it was written.

    Raises:
        RunError: where the data changed since training, or cannot be read.
    """
    path = subject.path / "scores" / _FILE if subject.path.is_dir() else None
    manifest, versions = subject.manifest, package_versions()
    identity = {
        "schema": 1,
        "network": subject.config.network,
        "weights": subject.weights_digest,
        "model": manifest["model"],
        "calibration": manifest["data"]["calibration"],
        "score": subject.config.score,
        "tpr": tpr,
        "versions": {k: versions.get(k) for k in ("greg-cert", "torch")},
    }
    kept = None if path is None else _kept(path, identity)
    if kept is not None:
        return kept
    splits = common_data([subject])
    evaluator = Evaluator(subject, splits, tpr=tpr, device=device)
    decision = Decision(
        score=subject.config.score,
        tpr=tpr,
        threshold=evaluator.calibration_threshold(),
        calibration_samples=len(splits.calibration),
        num_classes=splits.num_classes,
        classes=splits.train.classes,
    )
    if path is not None:
        try:
            path.parent.mkdir(exist_ok=True)
            content = sealed({"identity": identity, "decision": asdict(decision)})
            write_atomic(path, json.dumps(content, indent=2) + "\n")
        except OSError:
            pass  # a run folder that cannot be written: computed anew each time
    return decision


def _kept(path: Path, identity: Mapping[str, Any]) -> Decision | None:
    """The decision in a file of this identity; one that is not as it was written is warned of."""
    try:
        kept: dict[str, Any] = read_json(path)
        whole = check_seal(kept, path)
        if kept["identity"] != identity:
            return None
        found = dict(kept["decision"])
        names = found.pop("classes")
        decision = Decision(**found, classes=None if names is None else tuple(names))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = error if isinstance(error, RunError) else f"{path}: cannot be read ({error!r})"
        warnings.warn(DamagedFileWarning(f"{line}; computed anew"), stacklevel=3)
        return None
    if not whole:
        tell_unchecked(path)
    return decision
