"""Post-hoc detectors whose score is proven: the most OOD that an image looks in a whole ball."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Penultimate
from greg_cert.errors import UnsupportedModelError
from greg_cert.verify.graph.agreement import Logits, check_agreement
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.prices import relaxation
from greg_cert.verify.score_bounds import ScoreBounds
from greg_cert.verify.scorer import check_inputs, logit_function


def certified_energy(network: Penultimate, *, eps: float, passes: int) -> Fitted:
    """Proven upper bound of the energy −logsumexp f(x′) over ‖x′ − x‖∞ ≤ `eps`, by CROWN.

    The proven twin of `pro-energy`, whose path stays in that ball: what that finds is never above
    this, and the largest score of the ball lies between. In the paper's terms it is a certified
    lower bound of the confidence.

    Source: Chen et al., CVPR 2025, for the score; Zhang et al., "Efficient Neural Network
    Robustness Certification with General Activation Functions", NeurIPS 2018, for the bounds.

    Raises:
        UnsupportedModelError: when scoring, for a layer that cannot be bounded, by name, or a
            network on which CROWN costs more than so many passes a sample.
    """
    return _bounded(network, eps, math.inf, passes)


def certified_energy_l2(network: Penultimate, *, eps: float, passes: int) -> Fitted:
    """As `certified_energy`, over ‖x′ − x‖₂ ≤ `eps`: a ball of the kind that certificates have."""
    return _bounded(network, eps, 2.0, passes)


def _bounded(network: Penultimate, eps: float, norm: float, passes: int) -> Fitted:
    @cache
    def made(shape: tuple[int, ...]) -> tuple[Logits, ScoreBounds]:
        """The network on images of one shape, and what bounds it."""
        model = _of_id_classes(network, shape)
        graph = trace_model(model, shape)
        cost = math.ceil(relaxation(graph).fixed)
        if cost > passes:  # CROWN-IBP would be cheaper, but says nothing of so deep a network
            raise UnsupportedModelError(
                f"expected a network on which CROWN costs at most passes = {passes} passes a "
                f"sample, but got one on which it costs {cost}"
            )
        return logit_function(model), ScoreBounds(graph, "native", "id", norm, "energy")

    def score(x: Tensor) -> Tensor:
        x = check_inputs(x).to(network.device)
        logits, bounds = made(tuple(x.shape[1:]))
        check_agreement(logits, bounds.graph, x, "the samples")
        return bounds(x, eps).cpu()

    return Fitted(score)


def _of_id_classes(network: Penultimate, shape: tuple[int, ...]) -> nn.Module:
    """The network, with a linear layer behind it that drops the logit of an absent class."""
    probe = torch.zeros(1, *shape, dtype=torch.float64, device=network.device)
    outputs, kept = network.module(probe).shape[1], network.logits(probe).shape[1]
    if kept == outputs:
        return network.module
    chosen = nn.Linear(outputs, kept, bias=False, device="meta")
    identity = torch.eye(kept, outputs, dtype=torch.float64, device=network.device)
    chosen.weight = nn.Parameter(identity, requires_grad=False)
    return nn.Sequential(network.module, chosen)
