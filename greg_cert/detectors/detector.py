"""A post-hoc detector: built on a trained classifier, fitted on ID training data, then scoring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from greg_cert.data import Images
from greg_cert.detectors.catalogue import DETECTORS, Value
from greg_cert.detectors.fitted import Score
from greg_cert.detectors.names import check_options, parse_detector
from greg_cert.detectors.penultimate import Outputs, Penultimate, batches
from greg_cert.errors import UsageError
from greg_cert.runs.inference import gathered

_ROWS = 2048  # of features or logits scored at once


def build_detector(
    spec: str,
    model: nn.Module | Penultimate,
    *,
    num_classes: int | None = None,
    **options: Value | None,
) -> Detector:
    """The detector of that name on a trained classifier, to be fitted where it asks for that.

    Args:
        spec: a name, perhaps with options, as `parse_detector` reads: `knn`, `ash:percentile=0.8`.
        model: from raw images (B, C, H, W) to logits (B, K or more); it is copied, never changed.
            A `Penultimate` is shared as it is, for many detectors on one network.
        num_classes: number of ID classes where the model has an output more, as one trained with
            an absent class has; by default all outputs are.
        options: hyperparameters by name, which go before those in `spec`.

    Raises:
        UsageError: for an unknown name or option, or a value that it cannot have.
    """
    name, written = parse_detector(spec)
    given = written | check_options(name, options)
    if isinstance(model, Penultimate):
        if num_classes not in (None, model.num_classes):
            raise UsageError(
                f"expected num_classes of the network given, {model.num_classes}, "
                f"but got {num_classes}"
            )
        return Detector(name, model, given)
    return Detector(name, Penultimate(model, num_classes), given)


class Detector:
    """A score S(x) of raw images, higher = more OOD; see `build_detector`.

    Attributes:
        name: Short name, of `DETECTORS`.
        options: All its hyperparameters. One that a rule picks is None until it is fitted.
        requires_fit: Whether `fit` has to come before any score.
        network: The float64 copy that it reads.
    """

    def __init__(self, name: str, network: Penultimate, given: Mapping[str, Value]) -> None:
        self.name = name
        self.info = DETECTORS[name]
        self.options: dict[str, Value | None] = self.info.defaults | dict(given)
        self.requires_fit = self.info.fitted
        self.network = network
        self._given = dict(given)
        self._score: Score | None = None

    @property
    def reads_images(self) -> bool:
        """Whether it runs the network itself, so that `Outputs` do not serve."""
        return self.info.needs == "network"

    @property
    def reads_features(self) -> bool:
        """Whether `Outputs` for it need features."""
        return self.info.needs == "features"

    def fit(self, images: Images | Tensor, labels: Tensor | None = None) -> Self:
        """Itself, fitted on ID data; a detector that needs no fitting is left as it is.

        Args:
            images: the training data (data that the network was not trained on for a detector whose
                `info.held_out` is true), as a set, or raw images (N, C, H, W) in [0, 1].
            labels: (N,) classes 0 … K − 1; by default those of the set.

        Raises:
            UsageError: for labels that are missing where they are needed, out of range or not as
                many as images, options that do not fit the data, or features or logits that are
                not finite.
        """
        if not self.requires_fit:
            return self
        if self.reads_images:
            self._make([images])
            return self
        labels = images.labels if labels is None and not isinstance(images, Tensor) else labels
        return self.fit_outputs(
            self.network.outputs_of(images, features=self.reads_features), labels
        )

    def fit_outputs(self, train: Outputs, labels: Tensor | None = None) -> Self:
        """As `fit`, from what the network gives for the training data (`Penultimate.outputs_of`).

        Raises:
            UsageError: as `fit`, or if the features are missing or not finite.
        """
        if self.requires_fit:
            seen: list[Any] = [self._read(train)]
            if self.info.labelled:
                seen.append(_checked_labels(self.name, labels, train.logits))
            self._make(seen)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (B,) of raw images (B, C, H, W), on the CPU in float64.

        Raises:
            UsageError: before `fit`, where the detector requires it.
        """
        self._check_fitted()
        if self.reads_images:
            return self._made()(x)
        return self.scores_of_outputs(self.network.outputs(x, features=self.reads_features))

    def scores(self, images: Images | Tensor) -> Tensor:
        """Scores (N,) of a whole set, or of raw images (N, C, H, W), in batches.

        Raises:
            UsageError: as a call.
        """
        (scores,) = gathered(((self(x),) for x in batches(images)), len(images))
        return scores

    @torch.no_grad()
    def scores_of_outputs(self, outputs: Outputs) -> Tensor:
        """Scores (N,) from what the network gives for images (`Penultimate.outputs_of`).

        So that many detectors share one run of the network. Those that run it themselves cannot.

        Raises:
            UsageError: as a call, if the features are missing or not finite, or for one of those.
        """
        self._check_fitted()
        values, score = self._read(outputs), self._made()
        parts = ((score(rows).to(torch.float64),) for rows in values.split(_ROWS))
        (scores,) = gathered(parts, len(values))
        return scores

    def _check_fitted(self) -> None:
        if self.requires_fit and self._score is None:
            raise UsageError(f"detector {self.name}: expected fit() before scores")

    def _made(self) -> Score:
        """The score function; where nothing is fitted it is made at the first score."""
        return self._make([]) if self._score is None else self._score

    @torch.no_grad()
    def _make(self, seen: list[Any]) -> Score:
        of_network: list[Any] = []
        if self.info.needs != "logits":
            of_network.append(self.network.head if self.reads_features else self.network)
        wanted = self.info.defaults | self._given
        fitted = self.info.method(*of_network, *seen, **wanted)
        self.options = wanted | dict(fitted.options)
        self._score = fitted.score
        return self._score

    def _read(self, outputs: Outputs) -> Tensor:
        """What the method reads of the outputs: features or logits, all finite."""
        if self.reads_images:
            raise UsageError(f"detector {self.name}: expected images, on which it runs the network")
        values = outputs.features if self.reads_features else outputs.logits
        if values is None:
            raise UsageError(f"detector {self.name}: expected outputs with features, but got none")
        fine = values.isfinite().all(1)
        if not fine.all():
            what = "features" if self.reads_features else "logits"
            raise UsageError(
                f"detector {self.name}: expected finite {what}, but got NaN or infinity for image "
                f"{int((~fine).nonzero()[0])} of {len(values)}"
            )
        return values


def _checked_labels(name: str, labels: Tensor | None, logits: Tensor) -> Tensor:
    count, classes = logits.shape
    if labels is None:
        raise UsageError(f"detector {name}: expected labels of the training data, but got none")
    labels = labels.detach().cpu()
    if labels.shape != (count,) or labels.is_floating_point():
        raise UsageError(
            f"detector {name}: expected integer labels of shape ({count},), "
            f"but got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UsageError(
            f"detector {name}: expected labels in 0 ... {classes - 1}, but got {low} ... {high}"
        )
    return labels.to(torch.int64)
