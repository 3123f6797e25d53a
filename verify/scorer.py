"""A model as a float64 score function, which gradients and attacks share with the bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.runs.inference import evaluation_copy
from greg_cert.scores import score_of
from greg_cert.verify.per_sample import refuse_batch_layers
from greg_cert.verify.structure import check_model

ScoreFunction = Callable[[Tensor], Tensor]
"""Inputs (B, ...) to scores (B,), differentiable."""

SIDES = ("id", "ood")
NO_GRADIENT = (
    "the model's logits have no gradient, so slopes and attacks would be blind: its forward runs "
    "under torch.no_grad or detaches what it computes; remove that (weights are frozen anyway)"
)
_PIXEL_ROUNDING = 1e-6


def logit_function(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The logits of a float64 copy of `model` in evaluation mode; `model` is not touched.

    Raises:
        UnsupportedModelError: for a NaN or infinite weight, a wrapper about the model, or a layer
            that looks at the batch.
    """
    check_model(model)
    check_weights(model)
    twin = evaluation_copy(model, torch.float64)
    refuse_batch_layers(twin)

    def logits(x: Tensor) -> Tensor:
        found: Tensor = twin(x.clone())  # a model may begin in place
        return found

    return logits


def score_function(model: nn.Module, score: str = "energy") -> ScoreFunction:
    """A score, by name, of a float64 copy of `model` in evaluation mode."""
    logits, value = logit_function(model), score_of(score)
    return lambda x: value(logits(x))


def class_margin(logits: Tensor, labels: Tensor, score: str) -> Tensor:
    """How far another class is ahead, max_{j≠y} f_j − f_y of logits (B, K), (B,).

    An absent class is never predicted and left out.
    """
    logits = logits[:, : score_of(score).classes(logits.shape[1])]
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own


def score_and_gradient(score: ScoreFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (B,) and their input gradients (B, ...), both detached."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = score(leaf)
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise UnsupportedModelError(NO_GRADIENT)
    return values.detach(), gradient


@dataclass(frozen=True)
class Margin:
    """Signed distance of a score from being on the wrong side of γ; wrong means `wrong(S)`.

    For ID samples the wrong side is S > γ (rejected), for OOD samples it is S ≤ γ (accepted).
    """

    threshold: float
    side: str

    @property
    def sign(self) -> float:
        """Where the wrong side lies: 1.0 at higher scores, −1.0 at lower ones."""
        return 1.0 if self.side == "id" else -1.0

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise UsageError(f"expected side 'id' or 'ood', but got {self.side!r}")
        if not math.isfinite(self.threshold):
            raise UsageError(f"expected a finite threshold, but got {self.threshold}")

    def of(self, scores: Tensor) -> Tensor:
        """γ − S for ID and S − γ for OOD samples, (B,); an attack makes it small."""
        return self.sign * (self.threshold - scores)

    def wrong(self, scores: Tensor) -> Tensor:
        """Whether each score is on the wrong side, (B,) bool."""
        return scores > self.threshold if self.side == "id" else scores <= self.threshold


@dataclass(frozen=True, eq=False)
class Detector:
    """A model in float64 with a score and a threshold: what is attacked, and what is certified.

    Attributes:
        logits: as of `logit_function`.
        score_name: a key of `greg_cert.scores.SCORES`.
        margin: of the score.
    """

    logits: Callable[[Tensor], Tensor]
    score_name: str
    margin: Margin

    def value(self, logits: Tensor) -> Tensor:
        """Scores (B,) of logits (B, K)."""
        return score_of(self.score_name)(logits)

    def score(self, x: Tensor) -> Tensor:
        """Scores (B,) of inputs (B, ...)."""
        return self.value(self.logits(x))

    def is_correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether (B,) no other ID class has as large a logit."""
        return class_margin(logits, labels, self.score_name) < 0

    def classes(self, logits: Tensor) -> int:
        """How many ID classes there are."""
        return score_of(self.score_name).classes(logits.shape[1])

    def predicted(self, logits: Tensor) -> Tensor:
        """The ID class (B,) of the largest logit."""
        return logits[:, : self.classes(logits)].argmax(1)

    def class_targets(
        self, rows: Tensor, labels: Tensor | None
    ) -> Iterator[tuple[ScoreFunction, Margin, Tensor]]:
        """What an attack may cross beside the decision: the class of rows (R,), a label at a time.

        Each as a function with its margin, and the rows that it is about; none without labels.
        """
        if labels is None:
            return
        for label in labels[rows].unique():

            def ahead(x: Tensor, label: Tensor = label) -> Tensor:
                return class_margin(self.logits(x), label.expand(len(x)), self.score_name)

            yield ahead, Margin(0.0, "id"), rows[labels[rows] == label]


def check_weights(model: nn.Module) -> None:
    """Raises `UnsupportedModelError`, naming the first tensor of `model` with a NaN or infinity."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(tensor.detach()).all():
            raise UnsupportedModelError(
                f"expected finite weights, but {name!r} holds NaN or infinity"
            )


def check_inputs(inputs: Tensor) -> Tensor:
    """`inputs` in float64, contiguous whatever their layout.

    Raises:
        UsageError: unless it is a non-empty, finite floating batch; for images (B, C, H, W) also
            unless all pixels lie in [0, 1], give or take a rounding of 1e-6.
    """
    inputs = inputs.detach()
    if inputs.ndim not in (2, 4) or len(inputs) == 0 or not inputs.is_floating_point():
        raise UsageError(
            "expected inputs (B, C, H, W) or (B, D) of a floating type with B >= 1, "
            f"but got {tuple(inputs.shape)} of {inputs.dtype}"
        )
    if not torch.isfinite(inputs).all():
        raise UsageError("expected finite inputs, but found NaN or infinity")
    if inputs.ndim == 4 and inputs.numel():
        low, high = float(inputs.min()), float(inputs.max())
        if low < -_PIXEL_ROUNDING or high > 1.0 + _PIXEL_ROUNDING:
            raise UsageError(
                f"expected pixels in [0, 1], but got values from {low:g} to {high:g}; "
                "normalisation belongs into the model"
            )
    x = inputs.detach().double().contiguous()  # one layout: the same answers for all
    return x.clone() if x.is_inference() else x
