"""A post-hoc detector: built on a trained classifier, fitted on ID training data, then scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from greg_cert.data import Images
from greg_cert.detectors.catalogue import DETECTORS, Value
from greg_cert.detectors.fitted import Fitted, Score
from greg_cert.detectors.gaussians import mds, rmds
from greg_cert.detectors.line import line
from greg_cert.detectors.logit_methods import ebo, entropy, gen, klm, mls, msp, openmax
from greg_cert.detectors.names import check_options, parse_detector
from greg_cert.detectors.neighbours import knn, nnguide
from greg_cert.detectors.penultimate import Outputs, Penultimate, batches
from greg_cert.detectors.prototypes import fdbd, nci, she
from greg_cert.detectors.shaping import ash, ash_b, ash_p, lts, react, scale
from greg_cert.detectors.subspace import vim
from greg_cert.detectors.weights import dice, gradnorm
from greg_cert.errors import UsageError

# Each takes, in this order, the head where it needs features, logits or features of the training
# data where it is fitted, and labels where it needs them; then its options by name.
_METHODS: Mapping[str, Callable[..., Fitted]] = {
    "msp": msp,
    "mls": mls,
    "ebo": ebo,
    "entropy": entropy,
    "gen": gen,
    "klm": klm,
    "openmax": openmax,
    "gradnorm": gradnorm,
    "react": react,
    "ash": ash,
    "ash-b": ash_b,
    "ash-p": ash_p,
    "scale": scale,
    "lts": lts,
    "dice": dice,
    "line": line,
    "she": she,
    "knn": knn,
    "nnguide": nnguide,
    "mds": mds,
    "rmds": rmds,
    "vim": vim,
    "fdbd": fdbd,
    "nci": nci,
}
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
    def reads_features(self) -> bool:
        """Whether `Outputs` for it need features."""
        return self.info.needs == "features"

    def fit(self, images: Images | Tensor, labels: Tensor | None = None) -> Self:
        """Itself, fitted on ID training data; a detector that needs no fitting is left as it is.

        Args:
            images: a set, or raw images (N, C, H, W) in [0, 1].
            labels: (N,) classes 0 … K − 1; by default those of the set.

        Raises:
            UsageError: for labels that are missing where they are needed, out of range or not as
                many as images, options that do not fit the data, or features or logits that are
                not finite.
        """
        if not self.requires_fit:
            return self
        labels = images.labels if labels is None and not isinstance(images, Tensor) else labels
        return self.fit_outputs(self._outputs(images), labels)

    def fit_outputs(self, train: Outputs, labels: Tensor | None = None) -> Self:
        """As `fit`, from what the network gives for the training data (`Penultimate.outputs_of`).

        Raises:
            UsageError: as `fit`, or if the features are missing or not finite.
        """
        if not self.requires_fit:
            return self
        read = [self._read(train)]
        self._check_finite(read[0])
        if self.info.labelled:
            read.append(_checked_labels(self.name, labels, train.logits))
        self._make(read)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (B,) of raw images (B, C, H, W), on the CPU in float64.

        Raises:
            UsageError: before `fit`, where the detector requires it.
        """
        self._check_fitted()
        if self.info.needs == "gradients":
            return self._odin(x)
        return self.scores_of_outputs(self.network.outputs(x, features=self.reads_features))

    def scores(self, images: Images | Tensor) -> Tensor:
        """Scores (N,) of a whole set, or of raw images (N, C, H, W), in batches.

        Raises:
            UsageError: as a call.
        """
        self._check_fitted()
        return torch.cat([self(x) for x in batches(images)])

    @torch.no_grad()
    def scores_of_outputs(self, outputs: Outputs) -> Tensor:
        """Scores (N,) from what the network gives for images (`Penultimate.outputs_of`).

        So that many detectors share one run of the network. ODIN, which needs gradients with
        respect to the images, cannot.

        Raises:
            UsageError: as a call, if the features are missing or not finite, or for ODIN.
        """
        self._check_fitted()
        values = self._read(outputs)
        self._check_finite(values)
        if self._score is None:
            self._make([])
        assert self._score is not None
        scores = [self._score(rows).to(torch.float64) for rows in values.split(_ROWS)]
        return torch.cat(scores)

    def _make(self, read: list[Tensor]) -> None:
        head = [self.network.head] if self.reads_features else []
        wanted = self.info.defaults | self._given
        with torch.no_grad():
            fitted = _METHODS[self.name](*head, *read, **wanted)
        self.options = wanted | dict(fitted.options)
        self._score = fitted.score

    def _read(self, outputs: Outputs) -> Tensor:
        if self.info.needs == "gradients":
            raise UsageError(f"detector {self.name}: expected images, which it differentiates by")
        if not self.reads_features:
            return outputs.logits
        if outputs.features is None:
            raise UsageError(f"detector {self.name}: expected outputs with features, but got none")
        return outputs.features

    def _check_finite(self, values: Tensor) -> None:
        fine = values.isfinite().all(1)
        if not fine.all():
            what = "features" if self.reads_features else "logits"
            raise UsageError(
                f"detector {self.name}: expected finite {what}, but got NaN or infinity for image "
                f"{int((~fine).nonzero()[0])} of {len(values)}"
            )

    def _outputs(self, images: Images | Tensor) -> Outputs:
        return self.network.outputs_of(images, features=self.reads_features)

    def _check_fitted(self) -> None:
        if self.requires_fit and self._score is None:
            raise UsageError(f"detector {self.name}: expected fit() before scores")

    def _odin(self, x: Tensor) -> Tensor:
        """−max softmax(f(x̂)/T), x̂ = x − eps·sign ∇(cross-entropy of the predicted class), x̂ free.

        By pytorch-ood. The step is in raw pixels; OpenOOD's 0.0014 is too, since it divides its
        step in normalised pixels by the standard deviation.
        """
        from pytorch_ood.detector import ODIN

        settings: dict[str, Any] = {k: v for k, v in self.options.items() if v is not None}
        with torch.enable_grad():
            scores: Tensor = ODIN(self.network.logits, **settings)(x.to(torch.float64))
        return scores.detach().cpu()


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
