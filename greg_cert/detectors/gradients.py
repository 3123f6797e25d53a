"""The detector that differentiates the network with respect to its images: ODIN, by pytorch-ood."""

from __future__ import annotations

import torch
from pytorch_ood.detector import ODIN
from torch import Tensor

from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Penultimate


def odin(network: Penultimate, *, temperature: float, eps: float) -> Fitted:
    """−max softmax(f(x̂)/T), x̂ = x − eps·sign ∇(cross-entropy of the predicted class), x̂ free.

    The step is in raw pixels; OpenOOD's 0.0014 is too, since it divides its step in normalised
    pixels by the standard deviation.

    Source: Liang et al., ICLR 2018, section 3.
    """
    method = ODIN(network.logits, temperature=temperature, eps=eps)

    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            found: Tensor = method(x.to(torch.float64))
        return found.detach().cpu()

    return Fitted(score)
