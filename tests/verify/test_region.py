"""Balls beyond half-spaces: bounds against exact minima, and cuts that follow from two."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import build, in_ball, points
from scipy.optimize import linprog
from score_oracles import dual
from torch import Tensor

from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.bounds.region import Cut, Region, tighter_cut
from greg_cert.verify.graph.trace import trace_model

NORMS = (2.0, math.inf)
DEPTHS = (-1.5, -0.7, -0.1, 0.0, 0.2, 0.6, 0.95, 0.9999)  # of the cut, in radii
DTYPE = torch.float64
LOOSE = 0.04  # of radius × slope: how finely multipliers are searched in ℓ∞


def random_region(depth: float, norm: float, seed: int, size: int = 3) -> tuple[Region, Tensor]:
    """Four balls, each with a cut at that depth, and slopes (4, 6, size)."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(4, 6, size, generator=generator, dtype=DTYPE)
    normal = torch.randn(4, size, generator=generator, dtype=DTYPE)
    normal = normal / dual(normal, norm).unsqueeze(1)
    slope[:, 0], slope[:, 1] = normal, -2 * normal  # along the cut
    radii = torch.rand(4, generator=generator, dtype=DTYPE) + 0.1
    inputs = torch.rand(4, size, generator=generator, dtype=DTYPE)
    return Region(inputs, radii, norm, Cut(normal, depth * radii)), slope


def exact_lowest(region: Region, b: int, slope: Tensor) -> float:
    """Min of slope·d over one region: by hand in ℓ2, a linear programme in ℓ∞."""
    assert region.cut is not None
    r, n, t = float(region.radii[b]), region.cut.normal[b], float(region.cut.distance[b])
    if region.norm == math.inf:
        found = linprog(
            slope.numpy(), A_ub=n[None].numpy(), b_ub=[-t], bounds=[(-r, r)] * len(slope)
        )
        assert found.success
        return float(found.fun)
    length = float(slope.norm())
    if float(n @ slope) * r / length >= t:  # the ball's own lowest point lies beyond the cut
        return -r * length
    across = slope - (slope @ n) * n
    return -t * float(slope @ n) - math.sqrt(max(r**2 - t**2, 0.0)) * float(across.norm())


def spread(x: Tensor, r: float, norm: float, count: int, seed: int = 0) -> Tensor:
    """Points (count, D) of the ball, on its border and inside."""
    many = x.expand(count, -1)
    return in_ball(many, torch.full((count,), r, dtype=DTYPE), norm, seed)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_lowest_is_the_exact_minimum(depth: float, norm: float) -> None:
    for seed in range(3):
        region, slope = random_region(depth, norm, seed)
        assert region.cut is not None
        found = region.lowest(torch.zeros(4, 6, dtype=DTYPE), slope)
        for b in range(4):
            d = torch.cat(
                [
                    spread(region.inputs[b], float(region.radii[b]), norm, 2000, s)
                    for s in (seed, seed + 1)
                ]
            ) - region.inputs[b]  # fmt: skip
            d = d[d @ region.cut.normal[b] <= -region.cut.distance[b]]
            for k in range(6):
                truth = exact_lowest(region, b, slope[b, k])
                size = float(region.radii[b]) * float(dual(slope[b, k], norm))
                assert float(found[b, k]) <= truth + 1e-12 * size
                if norm == 2.0 or depth <= 0.95:  # in ℓ∞ the multiplier may have to be too large
                    assert float(found[b, k]) >= truth - LOOSE * size
                if len(d):
                    assert bool((d @ slope[b, k] >= found[b, k] - 1e-12 * size).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_any_multiplier_is_sound(
    depth: float, norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(5)

    def anything(self: Region, slope: Tensor, length: Tensor) -> Tensor:
        power = 6 * torch.randn(len(self.radii), slope.shape[1], generator=generator)
        return (10.0**power).to(DTYPE)

    best = {s: random_region(depth, norm, s) for s in range(3)}
    usual = {s: region.lowest(slope.sum(2), slope) for s, (region, slope) in best.items()}
    monkeypatch.setattr(Region, "_share", anything)
    for seed, (region, slope) in best.items():
        found = region.lowest(slope.sum(2), slope)
        assert bool((region.multipliers(slope) >= 0).all())
        for b in range(4):
            for k in range(6):
                truth = float(slope[b, k].sum()) + exact_lowest(region, b, slope[b, k])
                assert float(found[b, k]) <= truth + 1e-9
        assert bool((found <= usual[seed] + LOOSE * region.lengths(slope)).all())


@pytest.mark.parametrize("norm", NORMS)
def test_cuts_that_say_nothing_or_everything(norm: float) -> None:
    region, slope = random_region(0.3, norm, 1)
    assert region.cut is not None
    value = slope.sum(2)
    plain = replace(region, cut=None).lowest(value, slope)
    flat = replace(region, cut=Cut(torch.zeros_like(region.cut.normal), 0 * region.radii))
    far = replace(region, cut=Cut(region.cut.normal, -1e3 * region.radii))
    none = replace(region, cut=Cut(region.cut.normal, torch.full_like(region.radii, -math.inf)))
    for vacuous in (flat, far, none):
        torch.testing.assert_close(vacuous.lowest(value, slope), plain, rtol=0, atol=1e-5)
    for distance in (1.0001, 1.5, 1e6, math.inf):  # nothing is left of the ball
        empty = replace(region, cut=Cut(region.cut.normal, distance * region.radii))
        assert bool((empty.lowest(value, slope) >= plain - 1e-9).all())
    still = region.lowest(value, torch.zeros_like(slope))
    torch.testing.assert_close(still, value)
    with pytest.raises(ValueError, match="cut"):
        replace(region, cut=None).multipliers(slope)


@pytest.mark.parametrize("norm", NORMS)
def test_regions_of_some_samples_and_slopes_shared_by_all(norm: float) -> None:
    region, slope = random_region(0.4, norm, 2)
    value = slope.sum(2)
    some = torch.tensor([3, 1])
    part = region.of(some).lowest(value[some], slope[some])
    torch.testing.assert_close(part, region.lowest(value, slope)[some], rtol=1e-12, atol=0)
    shared = region.lowest(value, slope[:1])
    torch.testing.assert_close(shared, region.lowest(value, slope[:1].expand_as(slope)))


def nearest_in_both(first: Cut, second: Cut, norm: float) -> float:
    """Distance from the centre to the intersection of two half-spaces."""
    n = torch.stack([first.normal[0], second.normal[0]])
    t = torch.stack([first.distance[0], second.distance[0]])
    if norm == math.inf:
        size = n.shape[1]
        eye, one = np.eye(size), np.ones((size, 1))
        rows = np.block([[n.numpy(), np.zeros((2, 1))], [eye, -one], [-eye, -one]])
        found = linprog(
            np.r_[np.zeros(size), 1.0], A_ub=rows, b_ub=np.r_[-t.numpy(), np.zeros(2 * size)],
            bounds=[(None, None)] * size + [(0, None)],
        )  # fmt: skip
        return float(found.fun) if found.success else math.inf
    if bool((t <= 0).all()):
        return 0.0
    for i, j in ((0, 1), (1, 0)):
        if float(t[i]) > 0 and float(n[j] @ (-t[i] * n[i])) <= -float(t[j]):
            return float(t[i])
    point = -torch.linalg.pinv(n) @ t
    return float(point.norm())


@pytest.mark.parametrize("norm", NORMS)
def test_a_tighter_cut_follows_from_both(norm: float) -> None:
    gained = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        normals = torch.randn(2, 1, 3, generator=generator, dtype=DTYPE)
        if seed % 3 == 0:
            normals[1] = -normals[0] + 10.0 ** -(seed / 4) * normals[1]  # nearly opposite
        normals = normals / dual(normals, norm).unsqueeze(2)
        away = 2 * torch.rand(2, 1, generator=generator, dtype=DTYPE) - 0.7
        if seed % 3 == 0:
            away[1] = -away[0].abs() - 0.1
        first, second = Cut(normals[0], away[0]), Cut(normals[1], away[1])
        cut = tighter_cut(first, second, norm)
        distance = float(cut.distance)
        truth = nearest_in_both(first, second, norm)
        assert distance <= truth * (1 + 1e-9) + 1e-12 or truth == math.inf
        assert distance >= float(away.max()) - 1e-9
        gained += distance > 1.001 * max(float(away.max()), 0.0)
        assert float(dual(cut.normal, norm)) <= 1 + 1e-9
        d = spread(torch.zeros(3, dtype=DTYPE), 4.0, norm, 3000, seed)
        both = (d @ normals[0, 0] <= -away[0]) & (d @ normals[1, 0] <= -away[1])
        assert bool((d[both] @ cut.normal[0] <= -cut.distance + 1e-9).all())
    assert gained > 5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("other", [-math.inf, math.nan])
def test_a_distance_that_is_no_number_says_nothing(other: float, norm: float) -> None:
    """−∞ is what a flat bound gives that does not hold: it must never pass for ∞."""
    normal = torch.tensor([[1.0, 0.0]], dtype=DTYPE)
    bad = Cut(normal, torch.tensor([other], dtype=DTYPE))
    good = Cut(normal, torch.tensor([0.4], dtype=DTYPE))
    spoilt = Cut(torch.full_like(normal, math.nan), torch.tensor([0.9], dtype=DTYPE))
    for nothing in (bad, spoilt):
        assert float(tighter_cut(None, nothing, norm).distance) <= 0.0
        for one, two in ((good, nothing), (nothing, good)):
            assert float(tighter_cut(one, two, norm).distance) == pytest.approx(0.4)
    none = Cut(normal, torch.tensor([math.inf], dtype=DTYPE))
    for one, two in ((good, none), (none, good), (bad, none), (none, bad), (None, none)):
        assert float(tighter_cut(one, two, norm).distance) == math.inf


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_flat_bound_is_infinitely_far_or_says_nothing(sign: float) -> None:
    """A dead network: row·f + constant is that constant everywhere."""
    model, shape = build("mlp")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    graph, x = trace_model(model, shape), points(shape, 2)
    relaxation = NativeEngine(graph).relax(x, torch.full((2,), 0.1, dtype=DTYPE), 2.0)
    row = torch.full((2, 4), 0.25, dtype=DTYPE)
    cut, steepness = relaxation.half_space(row, torch.full((2,), sign, dtype=DTYPE))
    assert bool((steepness == 0).all())
    assert bool((tighter_cut(None, cut, 2.0).distance == (math.inf if sign > 0 else 0.0)).all())
    # Bounds that are no numbers cut nothing off, whatever the value at the centre.
    i = graph.activations[0]
    low, high = relaxation.preactivations[i]
    broken = replace(relaxation, preactivations={**relaxation.preactivations, i: (low, high / 0)})
    cut, _ = broken.half_space(row, torch.ones(2, dtype=DTYPE))
    assert bool((tighter_cut(None, cut, 2.0).distance <= 0).all())
