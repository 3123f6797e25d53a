"""The objective of one training step, as a module, so that Fabric can wrap it whole."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.models import Classifier
from greg_cert.outlier_losses import OUTLIER_LOSSES, Outputs
from greg_cert.scores import score_of
from greg_cert.train.objective.gradient_loss import correctly_detected, gradient_loss
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

    def __init__(self, model: Classifier, *, bf16: bool = False) -> None:
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
        parts = [batch.images]
        same = batch.high is batch.low
        if batch.low is not None:
            parts.append(batch.low)
        if batch.high is not None and not same:
            parts.append(batch.high)
        inputs = torch.cat(parts).requires_grad_(terms.gradient or measure)
        n = len(batch.images)
        m = 0 if batch.low is None else len(batch.low)
        first_high = n if same else n + m

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
        out = {"ce": F.cross_entropy(logits[:n], batch.labels)}
        loss = out["ce"]
        if terms.outlier_loss != "none":
            of_step = Outputs(
                scores[:n], scores[n : n + m], logits[n : n + m], terms.m_in, terms.m_out
            )
            out["score_loss"] = OUTLIER_LOSSES[terms.outlier_loss].value(of_step)
            loss = loss + terms.lambda_score * out["score_loss"]
        if terms.gradient:
            norms, correct = self._penalty(inputs, scores, n, first_high, terms, recording)
            high = slice(first_high, None)
            out["grad_loss"] = gradient_loss(
                norms[:n], correct[:n], norms[high], correct[high], scaling=terms.scaling
            )
            if terms.scaling == "reference":  # of the whole step's samples, not this process's
                out["grad_loss"] = out["grad_loss"] / terms.processes
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
            if m:
                out["grad_norm_aux"] = norms[n:].mean()
        out["accuracy"] = (logits[:n].argmax(1) == batch.labels).float().mean()
        out["score_id"] = scores[:n].mean()
        if m:
            out["score_aux"] = scores[n:].mean()
        return {"loss": loss, **{k: v.detach() for k, v in out.items()}}

    def _penalty(
        self,
        inputs: Tensor,
        scores: Tensor,
        n: int,
        first_high: int,
        terms: Terms,
        recording: Recording,
    ) -> tuple[Tensor, Tensor]:
        """Gradient norms (B,) and where they count: correct ID samples and correct `high` ones."""
        place = torch.arange(len(inputs), device=inputs.device)
        is_id = place < n
        correct = correctly_detected(scores.detach(), is_id, m_in=terms.m_in, m_out=terms.m_out)
        correct = correct & (is_id | (place >= first_high))
        norms_of_batch = [m for m in self.model.modules() if m.training and isinstance(m, _NORMS)]

        def score_again(x: Tensor) -> Tensor:
            with _still(norms_of_batch):
                return score_of(terms.score)(self.logits(x))

        weights = torch.where(is_id, 1 / max(1, n), 1 / max(1, len(inputs) - first_high)) * correct
        norms = gradient_penalty(
            score_again,
            inputs,
            scores=scores,
            estimator=terms.estimator,
            # Where samples share statistics, the batch must stay whole.
            select=None if norms_of_batch else correct,
            weights=weights.to(scores.dtype) if norms_of_batch else None,
            scale=self._pixel_scale(inputs) if terms.gradient_space == "normalized" else None,
            recording=recording,
        )
        return norms, correct

    def _pixel_scale(self, inputs: Tensor) -> Tensor:
        """σ (C, 1, 1): pixels are normalised as (x − μ)/σ."""
        return self.model.normalize.weight.reshape(-1, 1, 1).reciprocal().to(inputs.dtype)


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
