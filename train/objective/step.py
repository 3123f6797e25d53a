"""The objective of one training step, as a module, so that Fabric can wrap it whole."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.models.normalize import Normalize
from greg_cert.outlier_losses import OUTLIER_LOSSES, Mixture, Outputs
from greg_cert.scores import score_of
from greg_cert.train.objective.gradient_loss import (
    correctly_detected,
    gradient_loss,
    smoothed_score,
)
from greg_cert.train.objective.lipschitz import LipschitzPenalty
from greg_cert.train.objective.penalty import Recording, gradient_penalty


@dataclass(frozen=True)
class Batch:
    """Images of one step: ID with labels, outliers for L_S, and outliers for L_∇.

    `low` and `high` are None where the method uses none; for GReg they are the same tensor.
    """

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,)
    low: Tensor | None = None  # (M, C, H, W)
    high: Tensor | None = None  # (M, C, H, W)
    mixture: Mixture | None = None  # of `low`, where it is of mixtures

    @property
    def low_rows(self) -> slice:
        """Which rows of `whole` are those of `low`."""
        n = len(self.images)
        return slice(n, n + (0 if self.low is None else len(self.low)))

    @property
    def high_rows(self) -> slice:
        """Which rows of `whole` are those of `high`."""
        low = self.low_rows
        if self.high is self.low:
            return low
        return slice(low.stop, low.stop + (0 if self.high is None else len(self.high)))

    def whole(self) -> Tensor:
        """All images of the step, each once."""
        high = None if self.high is self.low else self.high
        return torch.cat([v for v in (self.images, self.low, high) if v is not None])


@dataclass(frozen=True)
class Terms:
    """What an objective weighs; margins are resolved numbers here.

    The fields are those of `greg_cert.stages.StageConfig` at one step, and the number of processes
    that share it; a margin that has no say is infinite.
    """

    outlier_loss: str
    gradient: bool
    lambda_score: float
    lambda_grad: float
    score: str = "energy"
    m_in: float = -math.inf
    m_out: float = math.inf
    scaling: str = "paper"
    gradient_space: str = "pixel"
    estimator: str = "double-backward"
    lambda_lipschitz: float = 0.0
    processes: int = 1


class Objective(nn.Module):
    """L_CE + λ_S·L_S + λ_∇·L_∇ + λ_L·L̄ on one batch.

    Attributes:
        lipschitz: L̄ of the model, where it is penalised or can be measured.

    Args:
        model: the classifier.
        bf16: whether the model runs in bfloat16 where autocast sees fit; scores, losses and
            gradient norms are float32 in any case.
    """

    def __init__(self, model: nn.Module, *, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16
        self.lipschitz: LipschitzPenalty | None = None

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) in float32, or float64 for a model of that type."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            found: Tensor = self.model(inputs)
        return found.float() if found.dtype == torch.bfloat16 else found

    def forward(self, batch: Batch, terms: Terms, measure: bool = False) -> dict[str, Tensor]:
        """All terms of the loss and what is worth watching; `loss` is the one to minimise.

        `measure` asks for gradient norms even where no term needs them.
        """
        inputs = batch.whole().requires_grad_(terms.gradient or measure)
        n = len(batch.images)

        constant, nothing = None, contextlib.nullcontext()
        watch: contextlib.AbstractContextManager[None] = nothing
        penalty = self.lipschitz if terms.lambda_lipschitz else None
        if penalty is not None:
            compiled = self.model._compiled_call_impl is not None  # as `compile_in_place` leaves it
            watch = nothing if compiled else penalty.watch()
        elif self.lipschitz is not None and measure:
            # Before the pass, in which each process's own batch moves the running variance.
            constant = self.lipschitz().detach()
        recording = Recording(terms.estimator)
        with recording.record() if terms.gradient else nothing, watch:
            logits = self.logits(inputs)
            scores = score_of(terms.score)(logits)
        out = self._value_losses(logits, batch, terms)
        loss = _weighed(out, terms)
        if terms.gradient:
            out["grad_loss"] = self._gradient_loss(inputs, logits, batch, terms, recording)
            loss = loss + terms.lambda_grad * out["grad_loss"]
        if penalty is not None:
            constant = penalty()
            loss = loss + terms.lambda_lipschitz * constant
        if constant is not None:
            out["lipschitz_estimate"] = constant
        if measure:
            (gradient,) = torch.autograd.grad(scores.sum(), inputs, retain_graph=True)
            norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
            out["grad_norm_id"] = norms[:n].mean()
            if batch.low is not None:
                out["grad_norm_aux"] = norms[n:].mean()
        out["accuracy"] = (logits[:n].argmax(1) == batch.labels).float().mean()
        out["score_id"] = scores[:n].mean()
        if batch.low is not None:
            out["score_aux"] = scores[n:].mean()
        return {"loss": loss, **{k: v.detach() for k, v in out.items()}}

    def _value_losses(self, logits: Tensor, batch: Batch, terms: Terms) -> dict[str, Tensor]:
        """L_CE and L_S, which are of the logits (B, K) of a batch."""
        n, low = len(batch.images), batch.low_rows
        out = {"ce": F.cross_entropy(logits[:n], batch.labels)}
        if terms.outlier_loss != "none":
            scores = score_of(terms.score)(logits)
            of_step = Outputs(
                scores[:n], scores[low], logits[low], terms.m_in, terms.m_out, batch.mixture
            )
            out["score_loss"] = OUTLIER_LOSSES[terms.outlier_loss].value(of_step)
        return out

    def _gradient_loss(
        self, inputs: Tensor, logits: Tensor, batch: Batch, terms: Terms, recording: Recording
    ) -> Tensor:
        """L_∇, in the form of the paper or in that of its authors' code."""
        score, n, high = score_of(terms.score), len(batch.images), batch.high_rows
        place = torch.arange(len(inputs), device=inputs.device)
        is_id = place < n
        correct = correctly_detected(
            score(logits).detach(), is_id, m_in=terms.m_in, m_out=terms.m_out
        )
        correct = correct & (is_id | (place >= high.start))
        norms_of_batch = [m for m in self.model.modules() if m.training and isinstance(m, _NORMS)]
        of_paper = terms.scaling == "paper"

        def differentiated(found: Tensor) -> Tensor:
            """What is differentiated by the inputs: the scores, or one number of the batch."""
            if of_paper:
                return score(found)
            if score.absent:
                return _weighed(self._value_losses(found, batch, terms), terms)
            scores = score(found)
            return smoothed_score(scores[:n], correct[:n], scores[high], correct[high])

        def again(x: Tensor) -> Tensor:
            with _still(norms_of_batch):
                return differentiated(self.logits(x))

        weights = None
        if not of_paper:
            weights = logits.new_ones(len(inputs))
        elif norms_of_batch:  # the batch must stay whole
            each = torch.where(is_id, 1 / max(1, n), 1 / max(1, high.stop - high.start))
            weights = (each * correct).to(logits.dtype)
        norms = gradient_penalty(
            again,
            inputs,
            scores=differentiated(logits),
            estimator=terms.estimator,
            select=correct if weights is None else None,
            weights=weights,
            scale=self._pixel_scale(inputs) if terms.gradient_space == "normalized" else None,
            recording=recording,
        )
        if of_paper:
            return gradient_loss(norms[:n], correct[:n], norms[high], correct[high])
        # The number is a mean, and so is that of the norms: over the samples of all processes.
        return norms.mean() / terms.processes

    def _pixel_scale(self, inputs: Tensor) -> Tensor:
        """σ (C, 1, 1): pixels are normalised as (x − μ)/σ."""
        first = next(m for m in self.model.modules() if isinstance(m, Normalize))
        return first.weight.reshape(-1, 1, 1).reciprocal().to(inputs.dtype)


def _weighed(losses: Mapping[str, Tensor], terms: Terms) -> Tensor:
    """L_CE + λ_S·L_S."""
    value = losses["ce"]
    return value + terms.lambda_score * losses["score_loss"] if "score_loss" in losses else value


def compile_in_place(model: nn.Module) -> None:
    """Let `torch.compile` compile the model, for use in an `Objective`."""
    from torch._functorch import config

    # The input gradient is taken first and the graph kept, so backward may not reuse its memory.
    config.donated_buffer = False
    model.compile()


_NORMS = nn.modules.batchnorm._BatchNorm


@contextlib.contextmanager
def _still(modules: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Within the block the running statistics do not move: they are to do so once a step."""
    tracked = [m.track_running_stats for m in modules]
    for module in modules:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, value in zip(modules, tracked, strict=True):
            module.track_running_stats = value
