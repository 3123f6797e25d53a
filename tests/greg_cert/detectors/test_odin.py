from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from greg_cert.detectors import build_detector


def test_odin_steps_in_raw_pixels_towards_the_predicted_class() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    x = torch.rand(8, 1, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    twin = copy.deepcopy(model).double()
    logits = twin(x) / 1000
    loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
    (slope,) = torch.autograd.grad(loss, x)
    expected = -torch.softmax(twin(x - 0.01 * slope.sign()) / 1000, 1).amax(1)
    found = build_detector("odin:eps=0.01", model)(x.detach())
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
