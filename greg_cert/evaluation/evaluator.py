"""One model's accuracy, calibration and detection, by its own score or any post-hoc detector."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greg_cert.data import DataSplits, Images
from greg_cert.data.groups import Group, ood_groups
from greg_cert.detectors import (
    DETECTORS,
    Outputs,
    Penultimate,
    build_detector,
    parse_detector,
)
from greg_cert.devices import find_device
from greg_cert.errors import RunError, UsageError
from greg_cert.evaluation.store import ScoreStore
from greg_cert.metrics import (
    FloatArray,
    calibration_error,
    detection_metrics,
    threshold_at_tpr,
)
from greg_cert.runs.inference import logits_of
from greg_cert.runs.records import package_versions
from greg_cert.runs.subjects import Subject, common_data, open_subject, state_digest
from greg_cert.scores import SCORES, score_of

METRICS = ("fpr95", "auroc", "aupr_in", "aupr_out", "fpr95_ood_recall")
Observer = Callable[[int, int, str], None]
_PREDICTIONS = "predictions"
_MOST_KEPT = 2**31  # bytes of logits and features that are kept between detectors


@dataclass(frozen=True)
class Predictions:
    """What a model says of the ID test split.

    Attributes:
        label: (N,) true classes.
        predicted: (N,) classes of the largest logit among the ID classes.
        confidence: (N,) softmax probability of it, over the ID classes.
    """

    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float((self.label == self.predicted).mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 15 bins (`greg_cert.metrics.calibration_error`)."""
        return calibration_error(self.confidence, self.label == self.predicted)


@dataclass(frozen=True)
class Detection:
    """How one detector tells OOD test sets from the ID test split.

    Attributes:
        detector: its name, with the options that are not the defaults.
        tpr: share of the calibration split that `threshold` accepts.
        threshold: γ, from the calibration split alone; a sample is accepted iff its score is ≤ γ.
        test_tpr: share of the ID test split that γ accepts.
        scores: (N,) scores by part: `calibration`, `test`, `ood/NAME`; higher = more OOD.
        sets: metrics (`METRICS`) of each OOD test set, by name.
        groups: `near`, `far` or None for each OOD test set.
    """

    detector: str
    tpr: float
    threshold: float
    test_tpr: float
    scores: Mapping[str, FloatArray]
    sets: Mapping[str, Mapping[str, float]]
    groups: Mapping[str, Group | None]

    def mean(self, metric: str, group: Group | None = None) -> float | None:
        """Unweighted mean of a metric over the OOD sets of a group, or over all; None without."""
        names = [n for n in self.sets if group is None or self.groups.get(n) == group]
        return float(np.mean([self.sets[n][metric] for n in names])) if names else None

    def table(self) -> pd.DataFrame:
        """A row for each OOD set, then means over near, far (where there are any) and all sets."""
        rows = list(self.sets.items())  # no dict: a set may be called as a mean is
        wanted: list[tuple[str, Group | None]] = [("near OOD", "near"), ("far OOD", "far")]
        for title, group in (*wanted, ("mean", None)):
            means = {m: self.mean(m, group) for m in METRICS}
            found = {m: v for m, v in means.items() if v is not None}
            rows += [(title, found)] if found else []
        index = pd.Index([title for title, _ in rows], name="OOD set")
        return pd.DataFrame([values for _, values in rows], index=index, columns=list(METRICS))


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
        scores: folder of saved scores; by default `scores` in the run folder, and none otherwise.
        save: whether scores are read from there and written.
        groups: `near` or `far` of OOD sets by name, on top of what the data say.
        device: where the model is run; by default where a module is, and the CPU for all else.
        observer: called with (done, of, what comes next) between parts of the data.

    Attributes:
        unsaved: why scores could not be kept in the run folder, or None; they count all the same.

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
        scores: Path | None = None,
        save: bool = True,
        groups: Mapping[str, Group] | None = None,
        observer: Observer | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.subject: Subject | None = None
        self._must_save = True
        self.unsaved: str | None = None
        if isinstance(model, nn.Module):
            if data is None:
                raise UsageError("data: expected DataSplits beside a module, but got None")
            self.model: nn.Module = model
        else:
            self.subject = open_subject(Path(model)) if isinstance(model, (str, Path)) else model
            self.model = self.subject.load_model()
            if scores is None and self.subject.path.is_dir():
                scores = self.subject.path / "scores"
                self._must_save = False
        if device is not None:
            where = find_device(device) if isinstance(device, str) else device
            self.model = self.model.to(where)
        self.data = self._own_data() if data is None else data
        self.score = score or (self.subject.config.score if self.subject else "energy")
        score_of(self.score)
        self.tpr = tpr
        found = ood_groups(self.subject.config.data) if self.subject else {}
        self.groups: dict[str, Group | None] = {
            name: (groups or {}).get(name, found.get(name)) for name in self.data.ood
        }
        self._store = ScoreStore(scores) if save and scores is not None else None
        self._observer = observer
        self._detections: dict[str, Detection] = {}
        self._kept: dict[str, Outputs] = {}
        self._kept_bytes = 0

    def _own_data(self) -> DataSplits:
        assert self.subject is not None  # a module came with its data
        return common_data([self.subject])

    @cached_property
    def predictions(self) -> Predictions:
        """Labels, predictions and confidences of the ID test split."""
        identity = self._identity(_PREDICTIONS, {}, fitted=False)
        columns = self._saved(_PREDICTIONS, identity).get("test")
        labels = self.data.test.labels
        assert labels is not None
        if columns is None or not _possible(columns, labels.numpy(), self.data.num_classes):
            logits = self._test_logits[:, : self.data.num_classes]
            confidence, predicted = logits.softmax(1).max(1)
            columns = {
                "label": labels.double().numpy(),
                "predicted": predicted.double().numpy(),
                "confidence": confidence.numpy(),
            }
            self._save(_PREDICTIONS, identity, {"test": columns})
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
        own = spec in SCORES
        name, options = (spec, {}) if own else parse_detector(spec)
        fitted = not own and DETECTORS[name].fitted
        title = spec if own else f"{name}{_shown(options)}"
        identity = self._identity(name, options, fitted=fitted)
        parts = self._parts()
        saved = self._saved(title, identity)
        scores = {part: columns["score"] for part, columns in saved.items()}
        if not _complete(scores, parts):
            scores = self._computed(title, name, options, own=own)
            self._save(title, identity, {part: {"score": s} for part, s in scores.items()})
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

    def _computed(
        self, title: str, name: str, options: Mapping[str, Any], *, own: bool
    ) -> dict[str, FloatArray]:
        parts = self._parts()
        detector = None
        if not own:
            detector = build_detector(name, self._network, **options)
            if detector.requires_fit:
                self._tell(0, len(parts) + 1, f"{title}: fit")
                train = self.data.train
                seen = self._outputs("train", train, detector.reads_features)
                detector.fit_outputs(seen, train.labels)
        found = {}
        for i, (part, images) in enumerate(parts.items(), 1):
            self._tell(i, len(parts) + 1, f"{title}: {part}")
            if detector is None:
                logits = self._test_logits if part == "test" else logits_of(self.model, images)
                scores = score_of(name)(logits)
            elif detector.info.needs == "gradients":
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
            found[part] = values
        self._tell(len(parts) + 1, len(parts) + 1, title)
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
        tensors = [t for t in outputs if t is not None]
        size = sum(8 * t.numel() for t in tensors)
        if size + self._kept_bytes <= _MOST_KEPT:
            self._kept[part] = outputs
            self._kept_bytes += size
        return outputs

    def _parts(self) -> dict[str, Images]:
        data = self.data
        outliers = {f"ood/{name}": images for name, images in data.ood.items()}
        return {"calibration": data.calibration, "test": data.test, **outliers}

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()

    @cached_property
    def _weights(self) -> str:
        return self.subject.weights_digest if self.subject else state_digest(self.model)

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        """What beside the weights makes the function: two networks may have the same tensors."""
        told = self.subject.config.model_dump(mode="json")["model"] if self.subject else {}
        told.pop("weights", None)  # known by their digest
        layers = f"{type(self.model).__qualname__} {self.model!r}"
        return {"model": told, "layers": sha256(layers.encode()).hexdigest()}

    def _identity(self, name: str, options: Mapping[str, Any], *, fitted: bool) -> dict[str, Any]:
        """All that scores depend on."""
        if self._store is None:
            return {}
        versions = package_versions()
        return {
            "schema": 2,
            "detector": name,
            "options": dict(options),
            "network": self._made_of,
            "weights": self._weights,
            "data": {
                part: digest
                for part, digest in self._fingerprints.items()
                if part != "aux" and (fitted or part != "train")
            },
            "versions": {k: versions.get(k) for k in ("greg-cert", "torch", "pytorch-ood")},
        }

    def _saved(self, name: str, identity: Mapping[str, Any]) -> dict[str, dict[str, FloatArray]]:
        return {} if self._store is None else self._store.read(name, identity)

    def _save(
        self,
        name: str,
        identity: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, FloatArray]],
    ) -> None:
        if self._store is None:
            return
        try:
            self._store.write(name, identity, parts)
        except RunError as error:
            if self._must_save:  # the user named the folder
                raise
            self.unsaved = str(error)

    def _tell(self, done: int, of: int, next_one: str) -> None:
        if self._observer is not None:
            self._observer(done, of, next_one)


def _complete(scores: Mapping[str, FloatArray], parts: Mapping[str, Images]) -> bool:
    """Whether there is a finite score for each image of each part."""
    return list(scores) == list(parts) and all(
        len(scores[part]) == len(images) and bool(np.isfinite(scores[part]).all())
        for part, images in parts.items()
    )


def _possible(
    columns: Mapping[str, FloatArray], labels: NDArray[np.int64], num_classes: int
) -> bool:
    """Whether saved predictions are about these labels, and classes and probabilities."""
    predicted, confidence = columns["predicted"], columns["confidence"]
    return (
        np.array_equal(columns["label"], labels)
        and bool(np.isin(predicted, np.arange(num_classes)).all())
        and bool(((confidence >= 0) & (confidence <= 1)).all())
    )


def _shown(options: Mapping[str, Any]) -> str:
    """Options as they are typed, in one order."""
    parts = [f"{k}={json.dumps(v).strip(chr(34))}" for k, v in sorted(options.items())]
    return ":" + ",".join(parts) if parts else ""
