"""Detectors that read the head's weights: DICE and GradNorm, both by pytorch-ood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_ood.detector import DICE, GradNorm
from torch import Tensor, nn

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.scores import energy


def dice(head: Head, train: Tensor, *, p: float) -> Fitted:
    """DICE: energy of a head that keeps the weights of the largest mean contributions.

    Weight W_kd stays where W_kd·mean(z_d) is above the p-quantile of all K·D contributions. The
    mask is pytorch-ood's, which rounds the contributions to float32; the weights are our own in
    float64, and one matrix product takes the place of its (B, K, D) tensor.
    """
    method = DICE(None, w=head.weight, b=head.bias, p=p)
    method.fit_features(train, torch.zeros(len(train), dtype=torch.int64))
    kept = torch.where(method.masked_w != 0, head.weight, 0.0)
    return Fitted(lambda z: energy(F.linear(z, kept, head.bias)))


def gradnorm(head: Head, *, temperature: float) -> Fitted:
    """GradNorm: −‖∂L/∂W‖₁, with L the cross-entropy from the uniform distribution to the softmax.

    The gradient is that of the head's weight alone, as in the paper, so that the network itself is
    not needed: for features z it is (softmax(f/T) − 1/K)·zᵀ/T.
    """
    # On the meta device, where no initial weights are drawn from the global generator.
    layer = nn.Linear(head.weight.shape[1], len(head.weight), device="meta")
    layer.weight = nn.Parameter(head.weight, requires_grad=False)
    layer.bias = nn.Parameter(head.bias, requires_grad=False)
    return Fitted(GradNorm(layer, lambda name: name == "weight", temperature=temperature).predict)
