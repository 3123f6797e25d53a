"""One model's accuracy, calibration and detection, by its own score or any post-hoc detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from greg_cert.data import DataSplits, Images
from greg_cert.data.groups import Group, ood_groups
from greg_cert.detectors import DETECTORS, Outputs, Penultimate, build_detector, parse_detector
from greg_cert.devices import find_device
from greg_cert.digests import tensors_digest
from greg_cert.errors import RunError, UsageError
from greg_cert.evaluation.figures import Detection, Evaluation, Predictions
from greg_cert.evaluation.store import Columns, ScoreStore
from greg_cert.metrics import detection_metrics, threshold_at_tpr
from greg_cert.runs.inference import evaluation_copy, logits_of
from greg_cert.runs.records import package_versions
from greg_cert.runs.subjects import Subject, common_data, open_subject
from greg_cert.scores import SCORES, score_of

Observer = Callable[[int, int, str], None]
_PREDICTIONS = "predictions"
_MOST_KEPT = 2**31  # bytes of logits and features that are kept between detectors


def evaluate_model(
    model: nn.Module,
    splits: DataSplits,
    *,
    score: str = "energy",
    tpr: float = 0.95,
    device: torch.device | None = None,
) -> Evaluation:
    """Metrics of a model on the test split and every OOD test set, in float64.

    `score` is one of `greg_cert.scores.SCORES`. An output beyond the ID classes is that of an
    absent class, and never the predicted one.

    FPR95 sets its threshold on the ID test scores, as benchmarks do; `threshold` comes from the
    calibration split and is the γ that certificates are about.
    """
    twin = evaluation_copy(model, torch.float64, device)
    found = Evaluator(twin, splits, score=score, tpr=tpr, scores=False)
    own = found.detection()
    return Evaluation(
        id_accuracy=found.eval_acc(),
        tpr=tpr,
        threshold=own.threshold,
        test_tpr=own.test_tpr,
        ood={name: dict(values) for name, values in own.sets.items()},
        scores={k: v.tolist() for k, v in own.scores.items() if k != "calibration"},
    )


class Evaluator:
    """Evaluates one model; what was computed once is kept, and on disk where there is a folder.

        >>> Evaluator("runs/greg+").eval_ood("ash")

    Args:
        model: run folder, YAML file of a model from elsewhere, or a module from raw pixels to
            logits (then with `data`).
        data: splits; by default the model's own.
        score: the model's own OOD score, one of `greg_cert.scores.SCORES`; that of the run by
            default, and `energy` of a module.
        tpr: share of the calibration split that thresholds accept.
        scores: folder of saved scores, to read and write; True is `scores` in the run folder, and
            none without one; False is none.
        groups: `near` or `far` of OOD sets by name, on top of what the data say.
        device: where the model is run; by default where a module is, and the CPU for all else.

    Attributes:
        observer: called with (done, of, what comes next) between parts of the data.

    Raises:
        UsageError: a module without data.
        RunError: as of opening the run, or where its data changed.
    """

    def __init__(
        self,
        model: str | Path | Subject | nn.Module,
        data: DataSplits | None = None,
        *,
        score: str | None = None,
        tpr: float = 0.95,
        scores: Path | bool = True,
        groups: Mapping[str, Group] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.subject: Subject | None = None
        if isinstance(model, nn.Module):
            if data is None:
                raise UsageError("data: expected DataSplits beside a module, but got None")
            self.model, self.data = model, data
        else:
            self.subject = open_subject(Path(model)) if isinstance(model, (str, Path)) else model
            self.model = self.subject.load_model()
            self.data = common_data([self.subject]) if data is None else data
        if device is not None:
            where = find_device(device) if isinstance(device, str) else device
            self.model = self.model.to(where)
        self.score = score or (self.subject.config.score if self.subject else "energy")
        score_of(self.score)
        self.tpr = tpr
        found = ood_groups(self.subject.config.data) if self.subject else {}
        self.groups: dict[str, Group | None] = {
            name: (groups or {}).get(name, found.get(name)) for name in self.data.ood
        }
        self.observer: Observer | None = None
        self._store = ScoreStore(scores) if isinstance(scores, Path) else None
        if scores is True and self.subject is not None and self.subject.path.is_dir():
            self._store = ScoreStore(self.subject.path / "scores", required=False)
        self._detections: dict[str, Detection] = {}
        self._kept: dict[str, Outputs] = {}

    @property
    def unsaved(self) -> str | None:
        """Why scores could not be kept in the run folder, or None; they count all the same."""
        return None if self._store is None else self._store.unsaved

    @cached_property
    def predictions(self) -> Predictions:
        """Labels, predictions and confidences of the ID test split."""
        assert self.data.test.labels is not None
        labels = self.data.test.labels.numpy()

        def fits(saved: Columns) -> bool:
            """Whether these are about the same labels, and classes and probabilities."""
            columns = saved.get("test")
            return columns is not None and (
                np.array_equal(columns["label"], labels)
                and bool(np.isin(columns["predicted"], np.arange(self.data.num_classes)).all())
                and bool(((columns["confidence"] >= 0) & (columns["confidence"] <= 1)).all())
            )

        def compute() -> Columns:
            logits = self._test_logits[:, : self.data.num_classes]
            return {
                "test": {
                    "label": labels.astype(np.float64),
                    "predicted": logits.argmax(1).double().numpy(),
                    "confidence": logits.softmax(1).amax(1).numpy(),
                }
            }

        if self._store is None:
            columns = compute()["test"]
        else:
            identity = self._identity(_PREDICTIONS, {}, fitted=False)
            columns = self._store.kept(_PREDICTIONS, identity, fits, compute)["test"]
        return Predictions(
            columns["label"].astype(np.int64),
            columns["predicted"].astype(np.int64),
            columns["confidence"],
        )

    def eval_acc(self) -> float:
        """Accuracy on the ID test split."""
        return self.predictions.accuracy

    def eval_ood(self, detector: str | None = None) -> pd.DataFrame:
        """Detection metrics of every OOD test set, and their means; fractions of 1.

        FPR95 is the share of OOD samples accepted where 95 % of ID test samples are;
        `fpr95_ood_recall` is OpenOOD's direction.

        Args:
            detector: one of `greg_cert.detectors.DETECTORS`, perhaps with options, such as
                `ash:percentile=0.8`; by default the model's own score.

        Raises:
            UsageError: for an unknown detector or option, or data without OOD test sets.
        """
        if not self.data.ood:
            raise UsageError("data.ood: expected OOD test sets, but there are none")
        return self.detection(detector).table()

    def threshold(self, detector: str | None = None) -> float:
        """γ, which accepts the share `tpr` of the calibration split."""
        return self.detection(detector).threshold

    def calibration_threshold(self) -> float:
        """γ of the model's own score, without a look at the test data."""
        logits = logits_of(self.model, self.data.calibration)
        return threshold_at_tpr(score_of(self.score)(logits), self.tpr)

    def detection(self, detector: str | None = None) -> Detection:
        """Scores, threshold and metrics of one detector; arguments and errors as `eval_ood`."""
        spec = detector or self.score
        if spec not in self._detections:
            self._detections[spec] = self._detect(spec)
        return self._detections[spec]

    def _detect(self, spec: str) -> Detection:
        name, options = (spec, {}) if spec in SCORES else parse_detector(spec)
        typed = ",".join(f"{k}={v}" for k, v in sorted(options.items()))
        title = f"{name}:{typed}" if typed else name

        def fits(saved: Columns) -> bool:
            return list(saved) == list(self._parts) and all(
                len(columns["score"]) == len(self._parts[part])
                and bool(np.isfinite(columns["score"]).all())
                for part, columns in saved.items()
            )

        def compute() -> Columns:
            return self._scores(title, name, options)

        if self._store is None:
            found = compute()
        else:
            fitted = name not in SCORES and DETECTORS[name].fitted
            identity = self._identity(name, options, fitted=fitted)
            found = self._store.kept(title, identity, fits, compute)
        scores = {part: columns["score"] for part, columns in found.items()}
        gamma = threshold_at_tpr(scores["calibration"], self.tpr)
        return Detection(
            detector=title,
            tpr=self.tpr,
            threshold=gamma,
            test_tpr=float((scores["test"] <= gamma).mean()),
            scores=scores,
            sets={n: detection_metrics(scores["test"], scores[f"ood/{n}"]) for n in self.data.ood},
            groups=self.groups,
        )

    def _scores(self, title: str, name: str, options: Mapping[str, Any]) -> Columns:
        steps = len(self._parts) + 1
        detector = None if name in SCORES else build_detector(name, self._network, **options)
        if detector is not None and detector.requires_fit:
            self._tell(0, steps, f"{title}: fit")
            part = "calibration" if detector.info.held_out else "train"
            images = self.data.calibration if detector.info.held_out else self.data.train
            if detector.reads_images:
                detector.fit(images)
            else:
                seen = self._outputs(part, images, detector.reads_features)
                detector.fit_outputs(seen, images.labels)
        found = {}
        for i, (part, images) in enumerate(self._parts.items(), 1):
            self._tell(i, steps, f"{title}: {part}")
            if detector is None:
                logits = self._test_logits if part == "test" else logits_of(self.model, images)
                scores = score_of(name)(logits)
            elif detector.reads_images:
                scores = detector.scores(images)
            else:
                seen = self._outputs(part, images, detector.reads_features)
                scores = detector.scores_of_outputs(seen)
            values = scores.double().cpu().numpy()
            if not np.isfinite(values).all():
                at = int(np.flatnonzero(~np.isfinite(values))[0])
                raise RunError(
                    f"scores: expected finite scores of {title}, but got {values[at]} for sample "
                    f"{at} of {part}"
                )
            found[part] = {"score": values}
        self._tell(steps, steps, title)
        return found

    @cached_property
    def _test_logits(self) -> Tensor:
        """Logits of the test split, for predictions and scores alike."""
        return logits_of(self.model, self.data.test)

    @cached_property
    def _network(self) -> Penultimate:
        return Penultimate(self.model, self.data.num_classes)

    def _outputs(self, part: str, images: Images, features: bool) -> Outputs:
        """Logits, and features where asked for, kept for the next detector while they are few."""
        kept = self._kept.get(part)
        if kept is not None and (kept.features is not None or not features):
            return kept
        outputs = self._network.outputs_of(images, features=features)
        held = [t for kept in (*self._kept.values(), outputs) for t in kept if t is not None]
        if sum(8 * t.numel() for t in held) <= _MOST_KEPT:
            self._kept[part] = outputs
        return outputs

    @cached_property
    def _parts(self) -> dict[str, Images]:
        data = self.data
        outliers = {f"ood/{name}": images for name, images in data.ood.items()}
        return {"calibration": data.calibration, "test": data.test, **outliers}

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()

    @cached_property
    def _network_identity(self) -> dict[str, Any]:
        """Weights and what beside them makes the function: two networks may have the same."""
        told = self.subject.config.model_dump(mode="json")["model"] if self.subject else {}
        told.pop("weights", None)  # known by their digest
        layers = f"{type(self.model).__qualname__} {self.model!r}"
        return {
            "network": {"model": told, "layers": sha256(layers.encode()).hexdigest()},
            "weights": self.subject.weights_digest
            if self.subject
            else tensors_digest(self.model.state_dict()),
        }

    def _identity(self, name: str, options: Mapping[str, Any], *, fitted: bool) -> dict[str, Any]:
        """All that saved values depend on."""
        versions = package_versions()
        return {
            "schema": 3,
            "detector": name,
            "options": dict(options),
            **self._network_identity,
            "data": {
                part: digest
                for part, digest in self._fingerprints.items()
                if part != "aux" and (fitted or part != "train")
            },
            "versions": {k: versions.get(k) for k in ("greg-cert", "torch", "pytorch-ood")},
        }

    def _tell(self, done: int, of: int, next_one: str) -> None:
        if self.observer is not None:
            self.observer(done, of, next_one)
