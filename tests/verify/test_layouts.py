"""However images and weights lie in memory, and of whatever type they are, answers are the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from greg_cert.verify import attack_radius, certify, gradient_norm, lipschitz_bound, score_bound
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.sampled.clever import CleverOptions, clever_estimate
from greg_cert.verify.radius.sampled.smoothing import SmoothingOptions, smoothed_decisions
from greg_cert.verify.scorer import score_function

NOISE = SmoothingOptions(n0=5, n=40)
CLEVER = CleverOptions(10, 5)
SHORT = {
    "rounds": 2, "cuts": 1, "cut_rounds": 1, "splits": 2, "split_rounds": 1, "mirror_steps": 2,
    "attack_steps": 2, "attack_restarts": 1, "attack_polish": 2,
    "lipschitz": False,  # has an entry of its own
}  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 6), nn.LeakyReLU(0.1),
        nn.Linear(6, 3),
    ).eval()  # fmt: skip


def images() -> Tensor:
    """Numbers that every floating type holds."""
    return torch.randint(0, 17, (3, 3, 4, 4), generator=torch.Generator().manual_seed(1)) / 16


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "differentiated": lambda x: x.clone().requires_grad_(),
    "part of a graph": lambda x: x.clone().requires_grad_().permute(1, 0, 2, 3).permute(1, 0, 2, 3),
    "half": lambda x: x.half().to(memory_format=torch.channels_last),
    "bfloat16": lambda x: x.bfloat16(),
    "float64": lambda x: x.double().to(memory_format=torch.channels_last),
}


def _relaxed(model: nn.Module, x: Tensor, engine: str) -> Tensor:
    radii = torch.full((len(x),), 0.05, dtype=torch.float64)
    found = make_engine(engine, trace_model(model, (3, 4, 4))).relax(
        x.detach().double(), radii, math.inf
    )
    return torch.cat([t.flatten() for box in found.preactivations.values() for t in box])


def entries(model: nn.Module, gamma: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """The public functions, and what they are made of, as functions of the images alone."""
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "gradient_norm": lambda x: gradient_norm(model, x),
        "attack_radius": lambda x: attack_radius(model, x, gamma, steps=3, rounds=3, clip=True),
        "clever": lambda x: (
            clever_estimate(score_function(model), x, 0.1, options=CLEVER).sampled_maximum
        ),
        "smoothing": lambda x: certify(
            model, x, gamma, method="smoothing", attack=False, smoothing=NOISE
        ).other["radius_smoothing"],  # type: ignore[return-value]
        "smoothed_decisions": lambda x: (
            smoothed_decisions(lambda y: score_function(model)(y.double()) <= gamma, x, NOISE).count
        ),
    }
    for engine in ("native", "auto-lirpa"):
        method = "crown" if engine == "auto-lirpa" else "branch,crown-ibp"
        found |= {
            f"certify {engine}": lambda x, engine=engine, method=method: (
                certify(
                    model, x, gamma, method=method, engine=engine, norm=math.inf, **SHORT
                ).radius_certified
            ),
            f"lipschitz {engine}": lambda x, engine=engine: lipschitz_bound(
                model, x, 0.05, engine=engine
            ),
            f"score {engine}": lambda x, engine=engine: score_bound(model, x, 0.05, engine=engine),
            f"relax {engine}": lambda x, engine=engine: _relaxed(model, x, engine),
        }
    return found


@pytest.fixture(scope="module")
def expected() -> tuple[float, dict[str, Tensor]]:
    model, x = net(), images()
    gamma = float(score_function(model)(x.double()).max()) + 0.02
    return gamma, {name: call(x) for name, call in entries(model, gamma).items()}


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_images_changes_nothing(
    layout: str, expected: tuple[float, dict[str, Tensor]]
) -> None:
    gamma, answers = expected
    x = LAYOUTS[layout](images())
    before = x.detach().clone()
    for name, call in entries(net(), gamma).items():
        if x.dtype == torch.float64 and name == "smoothed_decisions":
            continue  # a detector of its own: it is shown float64
        check(call(x), answers[name])
    assert torch.equal(x.detach(), before)


def test_an_expanded_image_is_so_many_images(expected: tuple[float, dict[str, Tensor]]) -> None:
    x = images()[:1].expand(3, -1, -1, -1)
    for call in entries(net(), expected[0]).values():
        check(call(x), call(x.clone(memory_format=torch.contiguous_format)))


def test_the_layout_of_weights_changes_nothing(expected: tuple[float, dict[str, Tensor]]) -> None:
    gamma, answers = expected
    model = copy.deepcopy(net()).to(memory_format=torch.channels_last)
    for layer in model:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
            layer.bias = nn.Parameter(layer.bias.detach().repeat_interleave(2)[::2])
    for name, call in entries(model, gamma).items():
        check(call(images()), answers[name])
