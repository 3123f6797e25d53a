"""The objective of one training step, as a module, so that Fabric can wrap it whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.models import Classifier
from greg_cert.scores import energy
from greg_cert.train.losses import correctly_detected, energy_margin_loss, gradient_loss
from greg_cert.train.penalty import gradient_penalty


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
    """What an objective weighs; margins are resolved numbers here."""

    use_score: bool
    use_gradient: bool
    m_in: float
    m_out: float
    lambda_score: float
    lambda_grad: float
    estimator: str


class Objective(nn.Module):
    """L_CE + λ_S·L_S + λ_∇·L_∇ on one batch."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, terms: Terms, measure: bool = False) -> dict[str, Tensor]:
        """All terms of the loss and what is worth watching; `loss` is the one to minimise.

        Args:
            batch: images of the step.
            terms: which terms, and their weights.
            measure: measure gradient norms even where no term needs them.
        """
        parts = [batch.images]
        same = batch.high is batch.low
        if batch.low is not None:
            parts.append(batch.low)
        if batch.high is not None and not same:
            parts.append(batch.high)
        inputs = torch.cat(parts).requires_grad_(terms.use_gradient or measure)
        n = len(batch.images)
        m = 0 if batch.low is None else len(batch.low)

        replay = _Replay(self.model, inputs.device)
        logits = self.model(inputs)
        scores = energy(logits)
        out = {"ce": F.cross_entropy(logits[:n], batch.labels)}
        loss = out["ce"]
        if terms.use_score:
            out["score_loss"] = energy_margin_loss(
                scores[:n], scores[n : n + m], m_in=terms.m_in, m_out=terms.m_out
            )
            loss = loss + terms.lambda_score * out["score_loss"]
        if terms.use_gradient:
            norms, correct = self._penalty(inputs, scores, n, n if same else n + m, terms, replay)
            first = n if same else n + m
            out["grad_loss"] = gradient_loss(norms[:n], correct[:n], norms[first:], correct[first:])
            loss = loss + terms.lambda_grad * out["grad_loss"]
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
        self, inputs: Tensor, scores: Tensor, n: int, first: int, terms: Terms, replay: _Replay
    ) -> tuple[Tensor, Tensor]:
        """Gradient norms (B,) and where they count: correct ID samples and correct `high` ones."""
        place = torch.arange(len(inputs), device=inputs.device)
        correct = correctly_detected(
            scores.detach(), place < n, m_in=terms.m_in, m_out=terms.m_out
        ) & ((place < n) | (place >= first))

        def score_again(x: Tensor) -> Tensor:
            with replay.again():
                return energy(self.model(x))

        norms = gradient_penalty(
            score_again,
            inputs,
            scores=scores,
            estimator=terms.estimator,
            # Where samples share statistics or random masks, the batch must stay whole.
            select=None if replay.coupled else correct,
        )
        return norms, correct


class _Replay:
    """Makes a second forward pass the same function as the first: dropout masks, BatchNorm.

    The running statistics of BatchNorm move once a step, not twice.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        modules = [m for m in model.modules() if m.training]
        self._norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        random = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modules)
        self.coupled = bool(self._norms) or random
        self._device = device
        self._state = torch.get_rng_state() if random else None
        self._cuda = torch.cuda.get_rng_state(device) if random and device.type == "cuda" else None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within the block the model draws as at the first pass, and its statistics stand still."""
        devices = [self._device] if self._cuda is not None else []
        with torch.random.fork_rng(devices, enabled=self._state is not None):
            if self._state is not None:
                torch.set_rng_state(self._state)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            tracked = [(m, m.track_running_stats) for m in self._norms]
            for module, _ in tracked:
                module.track_running_stats = False
            try:
                yield
            finally:
                for module, value in tracked:
                    module.track_running_stats = value
