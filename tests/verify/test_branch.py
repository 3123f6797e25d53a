"""Balls proven by parts: sound under attack, never below CROWN, near the truth where known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from problems import build, energy_of, pairwise_settings, points
from random_networks import draw_network
from soundness import attack_certificates, middle_threshold
from torch import Tensor, nn

from greg_cert.errors import EngineError
from greg_cert.verify import certify
from greg_cert.verify.certificates import ContradictionWarning
from greg_cert.verify.radius import branch
from greg_cert.verify.radius.branch import Domains

NORMS = (2.0, math.inf)
SIDES = ("id", "ood")
QUICK = {
    "lipschitz": False, "attack_steps": 8, "attack_restarts": 1, "attack_polish": 4,
    "rounds": 4, "cut_rounds": 2, "split_rounds": 2,
}  # fmt: skip


def setting(name: str, count: int = 4) -> tuple[nn.Module, Tensor, float]:
    model, shape = build(name)
    x = points(shape, count, seed=81)
    return model.double(), x, middle_threshold(model.double(), x)


@pytest.mark.parametrize(
    ("name", "norm", "side"),
    pairwise_settings(["mlp", "conv", "residual", "leaky", "max_pool_2", "max_min", "bent"]),
)
def test_no_attack_within_a_radius_and_never_below_crown(name: str, norm: float, side: str) -> None:
    model, x, threshold = setting(name)
    result = certify(
        model, x, threshold, side=side, norm=norm, max_radius=2.0, method="crown,branch", **QUICK
    )  # type: ignore[arg-type]
    assert attack_certificates(model, x, threshold, side, norm, result) > 0
    plain, split = result.other["radius_crown"], result.other["radius_branch"]
    assert bool((split >= 0.98 * plain).all())  # each search stops within its tolerance
    assert torch.equal(result.radius_certified, torch.maximum(plain, split))


@pytest.mark.parametrize("first", [500, 510, 520])
def test_no_radius_of_a_random_network_gives_way(first: int) -> None:
    radii = 0
    for seed in range(first, first + 10):
        network = draw_network(random.Random(seed))
        x = network.inputs(3)
        threshold = middle_threshold(network.model, x)
        norm, side = NORMS[seed % 2], SIDES[seed // 2 % 2]
        result = certify(
            network.model, x, threshold, side=side, norm=norm, method="branch", **QUICK
        )  # type: ignore[arg-type]
        radii += attack_certificates(network.model, x, threshold, side, norm, result)
    assert radii > 5


class Unread(nn.Module):
    """A linear model that computes a ReLU which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch.relu(self.first(x))
        found: Tensor = self.head(x)
        return found


def _shifted(bias: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].bias.fill_(bias)  # type: ignore[union-attr, operator]
    return model


def _constant() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[2].weight.zero_()  # type: ignore[union-attr, operator]
    return model


NOTHING_TO_SPLIT: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 3),
    "linear of one logit": lambda: nn.Linear(4, 1),
    "two linear layers": lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten()),
    "gelu": lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
    "gelu of one logit": lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 1)),
    "dead": lambda: _shifted(-100.0),
    "alive": lambda: _shifted(100.0),
    "constant": _constant,
    "unread": Unread,
}


@pytest.mark.parametrize(("name", "norm", "side"), pairwise_settings(NOTHING_TO_SPLIT))
def test_where_no_sign_is_open_the_answer_is_that_without_splits(
    name: str, norm: float, side: str
) -> None:
    torch.manual_seed(3)
    shape = (1, 2, 2) if name == "convolution" else (4,)
    model, x = NOTHING_TO_SPLIT[name]().double().eval(), points(shape, 3, seed=1)
    threshold = middle_threshold(model, x)
    if name in ("constant", "dead"):
        threshold += 0.1 if side == "id" else -0.1
    result = certify(
        model, x, threshold, side=side, norm=norm, max_radius=0.5,
        method=["crown", "branch", "crown-ibp", "alpha-crown", "lipschitz"], **QUICK,
    )  # type: ignore[arg-type]  # fmt: skip
    assert attack_certificates(model, x, threshold, side, norm, result) > 0
    plain, split = result.other["radius_crown"], result.other["radius_branch"]
    assert bool((split >= 0.98 * plain).all())


def plane() -> tuple[nn.Module, Tensor, float]:
    """A small network on the plane, whose radii can be found by looking everywhere."""
    generator = torch.Generator().manual_seed(4)
    model = (
        nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
        .double()
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = points((2,), 3, seed=5)
    return model, x, float(energy_of(model, x).max()) + 0.5


def test_the_radius_on_a_plane_is_nearly_the_true_one() -> None:
    model, x, threshold = plane()
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)[:-1]
    steps = torch.linspace(0, 2.0, 4001, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    truth = []
    for one in x:
        grid = one + steps[:, None, None] * directions
        wrong = (energy_of(model, grid.reshape(-1, 2)) > threshold).reshape(len(steps), -1)
        first = torch.where(wrong.any(1), steps, math.inf).min()
        truth.append(float(first))
    found = certify(
        model, x, threshold, max_radius=2.0, method="branch", splits=12, domains=500,
        split_rounds=25, tolerance=1e-3, mirror_steps=25, attack=False, lipschitz=False,
    ).radius_certified  # fmt: skip
    plain = certify(
        model, x, threshold, max_radius=2.0, cuts=0, attack=False, lipschitz=False
    ).radius_certified
    finite = torch.tensor(truth).double().clamp(max=2.0)
    assert bool((found <= finite + 2e-3).all())
    # A domain is the ball with signs given, not the polytope where they hold: hence "nearly".
    assert bool((found >= 0.9 * finite).all()), (found, finite)
    assert float((plain / found).mean()) < 0.8, (plain, finite)  # linear bounds stay far below


def test_auto_lirpa_does_not_branch() -> None:
    model, x, threshold = setting("mlp")
    with pytest.raises(EngineError, match="engine 'native' for the method branch"):
        certify(model, x, threshold, method="branch", engine="auto-lirpa")


# --- The checks above can fail ------------------------------------------------------------------


def _positive_half_alone(domains: Domains, left_behind: Tensor) -> Domains:
    both = split_before(domains, left_behind)
    return both.of(torch.arange(len(both.owner) // 2))


split_before = branch._split


def test_a_forgotten_half_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "_split", _positive_half_alone)
    options = {**QUICK, "attack_steps": 20, "split_rounds": 8}

    def attack_all() -> None:
        for name in ("mlp", "conv", "leaky"):
            model, x, threshold = setting(name)
            result = certify(model, x, threshold, max_radius=2.0, method="branch", **options)  # type: ignore[arg-type]
            attack_certificates(model, x, threshold, "id", 2.0, result)

    with pytest.raises(ContradictionWarning):
        attack_all()
