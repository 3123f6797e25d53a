"""Changes that leave the decision alone, or scale it, do the same to what is proven of it."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random

import pytest
import torch
from random_networks import RandomNetwork, draw_network
from soundness import ball_points, energy_and_slope, middle_threshold
from torch import Tensor, nn

from greg_cert.verify import Certificates, attack_radius, certify, lipschitz_bound

NORMS = (2.0, math.inf)
SEEDS = (403, 405, 407, 411, 412, 413, 414, 415)  # quick ones, not of the soundness suite
SETTINGS = dict(zip(SEEDS, itertools.cycle(itertools.product(NORMS, ("id", "ood"))), strict=False))
TOLERANCE = 0.01
RADII = ("radius_certified", "radius_lipschitz")


def network_of(seed: int, classes: int | None = None) -> tuple[RandomNetwork, Tensor, float]:
    network = draw_network(random.Random(seed), classes)
    x = network.inputs(4)
    return network, x, middle_threshold(network.model, x)


def proof(
    model: nn.Module, x: Tensor, threshold: float, seed: int, **options: object
) -> Certificates:
    arguments: dict[str, object] = {
        "norm": SETTINGS[seed][0], "side": SETTINGS[seed][1], "engine": "native",
        "method": "crown,lipschitz", "tolerance": TOLERANCE, "rounds": 8, "cut_rounds": 2,
        "attack": False, **options,
    }  # fmt: skip
    return certify(model, x, threshold, **arguments)  # type: ignore[arg-type]


@functools.cache
def original(seed: int, classes: int | None = None) -> Certificates:
    """What is proven of a network as it is."""
    network, x, threshold = network_of(seed, classes)
    return proof(network.model, x, threshold, seed)


def check_same(result: Certificates, before: Certificates, factor: float = 1.0) -> int:
    """Radii agree up to the tolerance of both searches; how many are positive."""
    for column in RADII:
        expected, found = factor * getattr(before, column), getattr(result, column)
        # Each may stop short of its best radius by the tolerance.
        assert torch.allclose(found, expected, rtol=2.5 * TOLERANCE, atol=1e-12), column
    assert result.status.tolist() == before.status.tolist()
    return int((before.radius_certified > 0).sum())


def head_of(model: nn.Module) -> nn.Linear:
    head = model[-1]  # type: ignore[index]
    assert isinstance(head, nn.Linear)
    return head


def scaled_input(network: RandomNetwork, factor: float) -> nn.Module:
    """x -> f(x/factor)."""
    channels = network.shape[0]
    layer: nn.Module
    if len(network.shape) == 3:
        layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        layer.weight.data.fill_(1.0 / factor)
    else:
        layer = nn.Linear(channels, channels, bias=False)
        layer.weight.data.copy_(torch.eye(channels) / factor)
    return nn.Sequential(layer.double(), *copy.deepcopy(network.model)).eval()  # type: ignore[misc]


def test_radii_scale_with_the_inputs() -> None:
    positive = 0
    for seed in SEEDS:
        network, x, threshold = network_of(seed)
        before = original(seed)
        factor = 0.125  # a power of two: the same digits
        model = scaled_input(network, factor)
        after = proof(model, factor * x, threshold, seed, max_radius=factor)
        positive += check_same(after, before, factor)
    assert positive > len(SEEDS) // 2


def test_radii_do_not_depend_on_the_order_of_the_logits() -> None:
    positive = 0
    for seed in SEEDS:
        network, x, threshold = network_of(seed, 4)
        before = original(seed, 4)
        model, order = copy.deepcopy(network.model), torch.tensor([2, 0, 3, 1])
        head = head_of(model)
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
        positive += check_same(proof(model, x, threshold, seed), before)
    assert positive > len(SEEDS) // 2


@pytest.mark.parametrize(("shift", "seeds"), [(-3.25, SEEDS[:4]), (12.0, SEEDS[4:])])
def test_radii_do_not_change_when_logits_and_threshold_are_shifted(
    shift: float, seeds: tuple[int, ...]
) -> None:
    for seed in seeds:
        network, x, threshold = network_of(seed)
        before = original(seed)
        model = copy.deepcopy(network.model)
        head_of(model).bias.data.add_(shift)
        check_same(proof(model, x, threshold - shift, seed), before)


def test_a_stricter_threshold_never_gives_a_longer_radius() -> None:
    shorter = 0
    for seed in SEEDS:
        network, x, threshold = network_of(seed)
        stricter = -1.0 if SETTINGS[seed][1] == "id" else 1.0  # accepted below γ, rejected above
        scores = energy_and_slope(network.model, x, 2.0)[0]
        spread = float(scores.max() - scores.min()) + 1e-6
        previous: Certificates | None = None
        for share in (-0.5, -0.1, 0.0, 0.1):
            result = proof(network.model, x, threshold + stricter * share * spread, seed)
            if previous is not None:
                for column in RADII:
                    longest = getattr(previous, column) * (1 + 1.5 * TOLERANCE)
                    assert bool((getattr(result, column) <= longest).all()), column
                shorter += int((result.radius_certified < previous.radius_certified).sum())
            previous = result
    assert shorter > len(SEEDS)


def test_a_hidden_neuron_in_two_halves_changes_nothing() -> None:
    positive = 0
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        first, second = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        for layer in (first, second):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator).double()
            layer.bias.data = torch.randn(layer.bias.shape, generator=generator).double() / 4
        model = nn.Sequential(first, nn.ReLU(), second).eval()
        x = torch.rand(4, 4, generator=generator).double()
        threshold = middle_threshold(model, x)
        wide, narrow = nn.Linear(4, 7).double(), nn.Linear(7, 3).double()
        wide.weight.data = torch.cat([first.weight.data, first.weight.data[:1]])
        wide.bias.data = torch.cat([first.bias.data, first.bias.data[:1]])
        halved = second.weight.data.clone()
        halved[:, 0] /= 2
        narrow.weight.data = torch.cat([halved, halved[:, :1]], 1)
        narrow.bias.data = second.bias.data
        split = nn.Sequential(wide, nn.ReLU(), narrow).eval()
        expected, found = (
            proof(m, x, threshold, seed, method="crown", lipschitz=False).radius_certified
            for m in (model, split)
        )
        assert torch.allclose(found, expected, rtol=2.5 * TOLERANCE, atol=1e-12)
        positive += int((expected > 0).sum())
    assert positive > len(SEEDS)


def identities(network: RandomNetwork) -> list[nn.Module]:
    """The same function with a step that does nothing: in front, or behind the first layer."""
    model, shape = network.model, network.shape
    layers = list(copy.deepcopy(model))  # type: ignore[call-overload]
    first: nn.Module
    if len(shape) == 3:
        first = nn.Conv2d(shape[0], shape[0], 1, bias=False)
        first.weight.data = torch.eye(shape[0]).reshape(shape[0], shape[0], 1, 1)
    else:
        first = nn.Linear(shape[0], shape[0], bias=False)
        first.weight.data = torch.eye(shape[0])
    variants = [
        nn.Sequential(first.double(), *layers),
        nn.Sequential(nn.Dropout(0.5), *layers),
        nn.Sequential(nn.Identity(), *layers, nn.Flatten()),
    ]
    return [v.eval() for v in variants]


def test_steps_that_do_nothing_change_nothing() -> None:
    positive = 0
    for seed in SEEDS:
        network, x, threshold = network_of(seed)
        before = original(seed)
        model = identities(network)[seed % 3]
        positive += check_same(proof(model, x, threshold, seed), before)
    assert positive > len(SEEDS) // 2


def test_samples_do_not_depend_on_their_batch() -> None:
    order = torch.tensor([3, 1, 0, 2])
    for seed in SEEDS[::2]:
        network, x, threshold = network_of(seed)
        before = original(seed)
        split = proof(network.model, x, threshold, seed, batch=3)
        check_same(split, before)
        turned = proof(network.model, x[order], threshold, seed)
        for column in RADII:
            expected = getattr(before, column)[order]
            assert torch.allclose(getattr(turned, column), expected, rtol=2.5 * TOLERANCE), column


@pytest.mark.parametrize("norm", NORMS)
def test_the_slope_bound_grows_with_the_ball_and_holds(norm: float) -> None:
    steps = rises = 0
    for seed in SEEDS:
        network, x, _ = network_of(seed)
        radii = (1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
        bounds = lipschitz_bound(network.model, x, radii, norm=norm, engine="native")
        rises += int((bounds.diff() > 1e-9 * bounds[:, :-1]).sum())
        steps += bounds.diff().numel()
        assert bool((bounds.diff() >= 0).all()), seed
        for radius, bound in zip(radii, bounds.unbind(1), strict=True):
            alone = lipschitz_bound(network.model, x, radius, norm=norm, engine="native")
            assert bool((bound <= alone).all()), (seed, radius)
            ball = torch.full((len(x),), radius, dtype=torch.float64)
            points = ball_points(x, ball, norm).flatten(0, 1)
            steep = energy_and_slope(network.model, points, norm)[1].reshape(-1, len(x))
            assert bool((steep <= bound * (1 + 1e-9) + 1e-12).all()), (seed, radius)
    assert rises > steps // 5


@pytest.mark.parametrize("norm", NORMS)
def test_certified_radii_stay_below_attacked_ones(norm: float) -> None:
    positive = 0
    for seed in SEEDS:
        network, x, threshold = network_of(seed)
        side = SETTINGS[seed][1]
        result = proof(network.model, x, threshold, seed, norm=norm)
        quick = {"seed": 1, "restarts": 1, "steps": 15, "rounds": 6}
        found = attack_radius(network.model, x, threshold, side=side, norm=norm, **quick)
        for column in RADII:
            assert bool((getattr(result, column) <= found).all()), column
        positive += int(((result.radius_certified > 0) & found.isfinite()).sum())
    assert positive > len(SEEDS) // 2
