"""Steps of the ascent on the variables of a coupled bound."""

from __future__ import annotations

import pytest
import torch

from greg_cert.verify.bounds.coupled.ascent import Ascent


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-22, 1e-30, 1e-38])
def test_no_gradient_is_too_small_for_a_bounded_step(size: float) -> None:
    """The squares of small gradients underflow in float32; steps stay as small as ever."""
    key = ("charge", 1)
    ascent = Ascent({key: torch.zeros(2, 3)})
    for _ in range(5):
        ascent.climb(lambda v: (v[key] * size).sum(1, keepdim=True), [1.0])
    moved = ascent.variables[key]
    assert bool((moved >= 0).all())
    assert bool((moved <= 1.0).all())
    assert size < 1e-15 or bool((moved > 0.3).all())
