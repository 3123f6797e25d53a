"""The gradient of the score at a point: exact there, an estimate of nothing beyond it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greg_cert.runs.inference import device_of
from greg_cert.scores import energy
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.norms import check_norm, dual_norm
from greg_cert.verify.scorer import check_inputs, logit_function, score_and_gradient


@torch.inference_mode(False)
def gradient_norm(model: nn.Module, inputs: Tensor, *, norm: float = 2.0) -> Tensor:
    """Dual norm ‖∇S(x)‖* of the energy score's input gradient, at each input itself.

    This is no Lipschitz constant: the slope may be larger at any distance from x.
    `lipschitz_bound` is the proven one.

    Args:
        model: raw images (B, C, H, W) to logits (B, K); evaluated in float64, eval mode.
        inputs: (B, C, H, W) raw pixels.
        norm: norm of perturbations, 2 or inf; its dual is taken.

    Returns:
        (B,) in score units per pixel unit.

    Raises:
        UsageError: for another norm, or inputs that are empty or not finite.
        UnsupportedModelError: for a function of the batch or of chance, or one whose gradients are
            not those of its values.
    """
    x = check_inputs(inputs).to(device_of(model))
    logits = logit_function(model)
    check_agreement(logits, None, x, "the samples")
    _, gradient = score_and_gradient(lambda x: energy(logits(x)), x)
    return dual_norm(gradient, check_norm(norm))
