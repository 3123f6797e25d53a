"""Every bound and certificate of many random networks is attacked; none may give way."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from exact_values import attack_exactly
from hypothesis import HealthCheck, Phase, given, settings
from random_networks import RandomNetwork, draw_network, networks, random_network
from soundness import attack_certificates, attack_lipschitz, attack_relaxation, middle_threshold
from torch import Tensor, nn

from greg_cert.verify import Certificates, certify
from greg_cert.verify.bounds import crown, interval, linear_bound
from greg_cert.verify.graph.ops import Activation
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import adjoint_interval, score_box

NORMS = (2.0, math.inf)
SAMPLES = 4
BLOCK = 20
NETWORKS = 60  # by the native engine
RADII = torch.tensor([1e-3, 0.03, 0.3, 2.0], dtype=torch.float64)  # one a sample, of ℓ2 balls
QUICK = {
    "attack_steps": 5, "attack_restarts": 1, "attack_polish": 4, "rounds": 4, "cut_rounds": 2,
    "method": "crown,lipschitz",
}  # fmt: skip
DRIVEN = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=12,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextlib.contextmanager
def naming(what: object) -> Iterator[None]:
    """Say with a failure which network it is about."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error} (network {what})") from error


def scale_of(norm: float) -> float:
    """ℓ∞ balls hold so much more that smaller ones are as hard."""
    return 1.0 if norm == 2.0 else 0.25


def attack_bounds(network: RandomNetwork, engine: str, method: str = "crown") -> int:
    graph, x = network.graph, network.inputs(SAMPLES)
    return sum(
        attack_relaxation(graph, engine, x, scale_of(norm) * RADII, norm, method) for norm in NORMS
    )


def attack_slopes(network: RandomNetwork, engine: str) -> int:
    graph, x = network.graph, network.inputs(SAMPLES)
    return sum(
        attack_lipschitz(network.model, graph, engine, x, 0.2 * scale_of(norm), norm)
        for norm in NORMS
    )


def certificates(
    network: RandomNetwork, engine: str, norm: float, side: str
) -> tuple[Tensor, float, Certificates]:
    x = network.inputs(SAMPLES)
    threshold = middle_threshold(network.model, x)
    result = certify(network.model, x, threshold, side=side, norm=norm, engine=engine, **QUICK)  # type: ignore[arg-type]
    return x, threshold, result


def attack_radii(network: RandomNetwork, engine: str, norm: float, side: str) -> int:
    x, threshold, result = certificates(network, engine, norm, side)
    return attack_certificates(network.model, x, threshold, side, norm, result)


def setting_of(seed: int) -> tuple[float, str]:
    """Norm and side, each of the four once in four seeds."""
    return NORMS[seed % 2], ("id", "ood")[seed // 2 % 2]


@pytest.mark.parametrize("first", range(0, NETWORKS, BLOCK))
def test_no_bound_of_a_random_network_gives_way(first: int) -> None:
    bounds = slopes = radii = 0
    for seed in range(first, first + BLOCK):
        network = draw_network(random.Random(seed))
        with naming(seed):
            bounds += attack_bounds(network, "native")
            slopes += attack_slopes(network, "native")
            radii += attack_radii(network, "native", *setting_of(seed))
    assert bounds > 10_000
    assert slopes == BLOCK * SAMPLES * len(NORMS)
    assert radii > BLOCK  # of two a network on the side in question


@pytest.mark.parametrize("first", [0, 6])
def test_no_bound_by_auto_lirpa_gives_way(first: int) -> None:
    bounds = radii = 0
    for seed in range(first, first + 6):
        network = draw_network(random.Random(seed))
        with naming(seed):
            bounds += attack_bounds(network, "auto-lirpa")
            assert attack_slopes(network, "auto-lirpa") > 0
            radii += attack_radii(network, "auto-lirpa", *setting_of(seed))
    assert bounds > 1_000
    assert radii > 1


@pytest.mark.parametrize("engine", ["native", "auto-lirpa"])
def test_no_bound_between_interval_boxes_gives_way(engine: str) -> None:
    seeds = range(20) if engine == "native" else range(6)
    bounds = 0
    for seed in seeds:
        with naming(seed):
            bounds += attack_bounds(draw_network(random.Random(seed)), engine, "crown-ibp")
    assert bounds > 200 * len(seeds)


@pytest.mark.parametrize("seed", [1, 5])
def test_a_thousand_logits(seed: int) -> None:
    network = draw_network(random.Random(seed), 1000)
    assert attack_bounds(network, "native") > 200
    assert attack_slopes(network, "native") == SAMPLES * len(NORMS)
    assert sum(attack_radii(network, "native", 2.0, side) for side in ("id", "ood")) > 0


@given(networks())
@DRIVEN
def test_no_bound_of_a_driven_network_gives_way(network: RandomNetwork) -> None:
    assert attack_bounds(network, "native") > 0
    assert attack_slopes(network, "native") > 0
    attack_radii(network, "native", *setting_of(network.seed))


def test_networks_are_the_same_for_a_seed_and_of_every_kind() -> None:
    model, shape = random_network(3)
    again, _ = random_network(3)
    x = torch.rand(2, *shape, dtype=torch.float64)
    assert torch.equal(model(x), again(x))
    kinds: set[str] = set()
    dead = zero = twins = 0
    for seed in range(2 * NETWORKS):
        made = draw_network(random.Random(seed)).model
        kinds |= {type(m).__name__ for m in made.modules()}
        layers = [m for m in made.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        dead += any(m.bias is not None and bool((m.bias == -1e3).any()) for m in layers)
        zero += any(bool((m.weight == 0).any()) for m in layers)
        head = layers[-1].weight
        twins += len(head) > 1 and torch.equal(head[0], head[1])
    expected = "Conv2d Linear BatchNorm1d BatchNorm2d ReLU LeakyReLU Sum Side Standardise MaxPool2d"
    assert {*expected.split(), "AvgPool2d", "AdaptiveAvgPool2d", "Dropout", "Flatten"} <= kinds
    assert min(dead, zero, twins) > 10


# --- Without rounding: networks in which nearly all digits cancel -------------------------------


@pytest.mark.parametrize("seeds", [range(8), range(12, 16), range(24, 36, 2)])
def test_no_bound_gives_way_where_digits_cancel(seeds: range) -> None:
    tried = 0
    for seed in seeds:
        with naming(f"cancelling {seed}"):
            tried += attack_exactly(seed, *setting_of(seed))
    assert tried > 25 * len(seeds)


@pytest.mark.parametrize("norm", NORMS)
def test_no_bound_by_auto_lirpa_gives_way_where_digits_cancel(norm: float) -> None:
    for seed in (1, 5, 26, 28):  # each has a box that ignored its rounding in one norm or both
        with naming(f"cancelling {seed}"):
            assert attack_exactly(seed, norm, "ood", "auto-lirpa") > 15


# --- The suite can fail: each deliberately wrong bound is found by it ---------------------------


def check_found(attack: Callable[[int], object], seeds: range, least: int = 2) -> None:
    """Raise AssertionError unless `least` of the networks show that a bound is wrong."""
    found = 0
    for seed in seeds:
        try:
            attack(seed)
        except AssertionError:
            found += 1
        if found == least:
            return
    raise AssertionError(f"{found} of {len(seeds)} networks show the mistake, not {least}")


def _bounds(seed: int) -> int:
    return attack_bounds(draw_network(random.Random(seed)), "native")


def _exactly(seed: int) -> int:
    return attack_exactly(seed, *setting_of(seed))


def _slopes(seed: int) -> int:
    return attack_slopes(draw_network(random.Random(seed)), "native")


_relax, _derivative = crown.relax_activation, interval.activation_derivative
_box, _forward = score_box.softmax_box, interval.forward_interval


def _no_intercept(low: Tensor, high: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    below, above, intercept = _relax(low, high, slope)
    return below, above, 0.0 * intercept


def _steep_lower_line(low: Tensor, high: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    below, above, intercept = _relax(low, high, slope)
    return torch.where((low < 0) & (high > 0), 1.3 * below, below), above, intercept


def _reversed_mask(low: Tensor, high: Tensor, slope: float) -> interval.Interval:
    smallest, largest = _derivative(-high, -low, slope)
    return smallest, largest


def _swapped_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    below, above = _box(low, high)
    return above, below


def _no_rounding(op: object, *, backwards: bool = False) -> float:
    return 0.0


Sabotage = tuple[str, ModuleType, str, object, Callable[[int], object]]
SABOTAGES: list[Sabotage] = [
    ("intercept", crown, "relax_activation", _no_intercept, _bounds),
    ("lower line", crown, "relax_activation", _steep_lower_line, _bounds),
    ("dead mask of products", interval, "activation_derivative", _reversed_mask, _slopes),
    ("mask of boxes", adjoint_interval, "activation_derivative", _reversed_mask, _slopes),
    ("softmax box", score_box, "softmax_box", _swapped_box, _slopes),
    ("interval slack", interval, "sum_rounding", _no_rounding, _exactly),
    ("no slack", linear_bound, "ROUNDING", 0.0, _exactly),
]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s[0])
def test_a_wrong_bound_is_found(sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, attribute, wrong, attack = sabotage
    monkeypatch.setattr(module, attribute, wrong)
    check_found(attack, range(16))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", ["id", "ood"])
def test_a_radius_that_is_too_long_is_found(side: str, norm: float) -> None:
    def attack(seed: int) -> None:
        network = draw_network(random.Random(seed))
        x, threshold, result = certificates(network, "native", norm, side)
        longer = 1.1 * result.radius_certified
        wrong = replace(
            result, radius_certified=longer, radius_attack=torch.full_like(longer, math.inf)
        )
        attack_certificates(network.model, x, threshold, side, norm, wrong)

    check_found(attack, range(16))


def test_networks_have_activations() -> None:
    graphs = (trace_model(*random_network(seed)) for seed in range(40))
    assert sum(any(isinstance(n.op, Activation) for n in graph.nodes) for graph in graphs) > 30
