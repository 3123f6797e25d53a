"""What enters a classifier's last linear layer, and that layer: what post-hoc detectors read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.data import Images
from greg_cert.data.types import unit_range
from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.models import Classifier
from greg_cert.models.last_layer import pass_with_features
from greg_cert.runs.inference import batch_size, device_of, evaluation_copy, gathered, set_batches


class Head(NamedTuple):
    """The last linear layer, of the ID classes alone."""

    weight: Tensor  # W, (K, D)
    bias: Tensor  # b, (K,)

    def logits(self, features: Tensor) -> Tensor:
        """Wz + b, (B, K), of features (B, D)."""
        return F.linear(features, self.weight, self.bias)


class Outputs(NamedTuple):
    """What a network gives for a set, on the CPU in float64.

    Attributes:
        logits: (N, K), of the ID classes alone.
        features: (N, D) penultimate features, or None where they were not asked for.
    """

    logits: Tensor
    features: Tensor | None = None


class Penultimate:
    """A float64 copy of a classifier that gives penultimate features beside the logits.

    For `greg_cert.models.Classifier` the features are `.features(x)` and the head is `.head`. In
    any other module the head is the nn.Linear whose output is the logits themselves, found on the
    first batch. The model given is never changed.

    A model trained with an absent class (score `absent_class`) has one output more than there are
    ID classes; that class is no ID class, so its row of W, b and of the logits is left out:
    `num_classes` says how many come first. Detectors would otherwise take an input that the model
    is sure is OOD for one it is sure of.

    Args:
        model: from raw images (B, C, H, W) to logits (B, K or more).
        num_classes: K, the number of ID classes; by default all outputs.

    Raises:
        UsageError: for a `num_classes` that is not positive.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None) -> None:
        if num_classes is not None and num_classes < 1:
            raise UsageError(f"expected num_classes >= 1, but got {num_classes}")
        self.device = device_of(model)
        self.num_classes = num_classes
        self._twin = evaluation_copy(model, torch.float64)
        self._last: nn.Linear | None = None
        if isinstance(self._twin, Classifier):
            self._last = self._twin.head

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) of raw images (B, C, H, W), on the model's device; differentiable in x.

        Raises:
            UnsupportedModelError: if the model does not give logits (B, K).
            UsageError: if it has fewer outputs than there are ID classes.
        """
        return self._of_id_classes(self._twin(self._moved(x)))

    @torch.no_grad()
    def outputs(self, x: Tensor, *, features: bool = True) -> Outputs:
        """Logits and, where asked for, features of raw images (B, C, H, W), on the CPU.

        Raises:
            UnsupportedModelError: as `logits`, or, where features are asked for, if the logits
                are not the output of one nn.Linear.
            UsageError: as `logits`.
        """
        if not features:
            return Outputs(self.logits(x).cpu())
        logits, z = self.logits_and_features(x)
        return Outputs(logits.cpu(), z.cpu())

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, D) of raw images (B, C, H, W), as `logits` gives them.

        Raises:
            UnsupportedModelError, UsageError: as `outputs`.
        """
        x = self._moved(x)
        found = pass_with_features(self._twin, x)
        if found.features is None:
            raise UnsupportedModelError(
                "expected a network whose logits are the output of an nn.Linear on features "
                f"(B, D), but got {type(self._twin).__name__}, whose logits come from elsewhere"
            )
        self._last = found.layer
        return self._of_id_classes(found.logits), found.features

    def outputs_of(self, images: Images | Tensor, *, features: bool = True) -> Outputs:
        """`outputs` of a whole set, in batches; images on disk are decoded meanwhile."""

        def part(x: Tensor) -> tuple[Tensor, ...]:
            return tuple(t for t in self.outputs(x, features=features) if t is not None)

        return Outputs(*gathered(map(part, batches(images)), len(images)))

    @property
    def module(self) -> nn.Module:
        """The frozen float64 copy itself, in evaluation mode; its outputs are not cut to K."""
        return self._twin

    @property
    def head(self) -> Head:
        """W (K, D) and b (K,) of the ID classes, on the CPU; zeros where the layer has no bias.

        Raises:
            UsageError: before a foreign module's first batch.
        """
        if self._last is None:
            raise UsageError("expected a batch before the head of a foreign module is asked for")
        weight = self._last.weight.detach().cpu()
        bias = weight.new_zeros(len(weight))
        if self._last.bias is not None:
            bias = self._last.bias.detach().cpu()
        return Head(weight[: self.num_classes], bias[: self.num_classes])

    def _moved(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise UsageError(f"expected images (B, C, H, W), but got shape {tuple(x.shape)}")
        return x.to(self.device, torch.float64)

    def _of_id_classes(self, logits: Any) -> Tensor:
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModelError(f"expected logits (B, K), but got {shape}")
        if self.num_classes is not None and logits.shape[1] < self.num_classes:
            raise UsageError(
                f"expected num_classes <= {logits.shape[1]}, the outputs of the model, "
                f"but got {self.num_classes}"
            )
        return logits[:, : self.num_classes]


def batches(images: Images | Tensor) -> Iterator[Tensor]:
    """Raw images (B, C, H, W) of a whole set in order, in [0, 1], as many at once as memory allows.

    Raises:
        UsageError: for a tensor that is not (N, C, H, W) with N >= 1, or leaves [0, 1].
    """
    if isinstance(images, Tensor):
        yield from map(unit_range, images.split(batch_size(_checked(images).shape[1:])))
    else:
        yield from set_batches(images)


def rows_of(images: Images | Tensor, indices: Tensor) -> Images | Tensor:
    """The images at `indices` (M,) of a set, or of raw images (N, C, H, W)."""
    return images[indices] if isinstance(images, Tensor) else images.subset(indices)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or 0 in images.shape:
        raise UsageError(f"expected images (N, C, H, W), but got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    low, high = (float(v) for v in torch.aminmax(images))
    if not (low >= 0.0 and high <= 1.0):  # NaN fails both
        raise UsageError(f"expected finite pixels in [0, 1], but got [{low:g}, {high:g}]")
    return images
