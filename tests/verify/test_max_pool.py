"""Max pools whose windows overlap or reach over the border: by brute force, and attacked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from problems import climb, points, randomise
from soundness import (
    attack_certificates,
    attack_lipschitz,
    attack_relaxation,
    ball_points,
    middle_threshold,
)
from torch import Tensor, nn

from greg_cert.errors import EngineError
from greg_cert.models.resnet import BasicBlock
from greg_cert.verify import certify, global_lipschitz_bound, score_bound
from greg_cert.verify.bounds.coupled.ascent import Ascent
from greg_cert.verify.bounds.coupled.backward import bound_rows, first_variables, value_and_slope
from greg_cert.verify.bounds.coupled.ball_boxes import ball_boxes, layer_norms
from greg_cert.verify.bounds.coupled.charges import Prices
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.bounds.coupled.neurons import Variables
from greg_cert.verify.bounds.engine import Engine
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.bounds.relax_pool import relax_pool
from greg_cert.verify.graph.max_pool import MaxPool, share_range
from greg_cert.verify.graph.ops import Graph, forward_all
from greg_cert.verify.graph.rounding import forward_errors
from greg_cert.verify.graph.trace import trace_model, with_whole_pools
from greg_cert.verify.radius.coupled.row_search import CoupledEffort

SHAPE = (2, 6, 6)
POOLS = {
    "torchvision": MaxPool((2, 5, 6), (3, 3), (2, 2), (1, 1)),
    "dense": MaxPool((2, 4, 4), (2, 2), (1, 1)),
    "same": MaxPool((1, 4, 4), (3, 3), (1, 1), (1, 1)),
    "ceil": MaxPool((1, 6, 6), (3, 3), (2, 2), (0, 0), ceil_mode=True),
    "dilated": MaxPool((1, 6, 5), (2, 3), (2, 1), (1, 1), (2, 1)),
    "padded apart": MaxPool((1, 4, 4), (2, 2), (2, 2), (1, 1)),
    "parts unread": MaxPool((1, 7, 7), (2, 2), (3, 3)),
}
QUICK: dict[str, Any] = {
    "coupled": CoupledEffort(3, 5), "rounds": 4, "mirror_steps": 1, "cuts": 1, "cut_rounds": 1,
    "splits": 1, "split_rounds": 1, "attack_restarts": 1, "attack_steps": 8,
}  # fmt: skip


def _stem() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), BasicBlock(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(3, 3),
    )  # fmt: skip


NETWORKS = {
    "torchvision": _stem,
    "charged": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 3, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    ),
    "signed": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.LeakyReLU(0.1), nn.Flatten(),
        nn.Linear(27, 3),
    ),
    "first": lambda: nn.Sequential(
        nn.MaxPool2d(2, 1), nn.Conv2d(2, 3, 2, 2), nn.GELU(), nn.MaxPool2d(2, 1, ceil_mode=True),
        nn.Flatten(), nn.Linear(3, 3),
    ),
}  # fmt: skip


def network(name: str) -> nn.Module:
    return randomise(NETWORKS[name](), torch.Generator().manual_seed(1)).double().eval()


def windows(op: MaxPool) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """For each output pixel (tap, row, column) of the members that exist, from the definition."""
    height, width = op.input_shape[1:]
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    taps = list(itertools.product(*(range(k) for k in op.kernel)))
    for out in itertools.product(*(range(n) for n in op.output_shape[1:])):
        found[out] = []
        for tap, (i, j) in enumerate(taps):
            row = out[0] * op.stride[0] - op.padding[0] + i * op.dilation[0]
            column = out[1] * op.stride[1] - op.padding[1] + j * op.dilation[1]
            if 0 <= row < height and 0 <= column < width:
                found[out].append((tap, row, column))
    return found


@pytest.mark.parametrize("name", POOLS)
def test_windows_are_those_of_the_definition(name: str) -> None:
    op, x = POOLS[name], points(POOLS[name].input_shape, 2) - 0.5
    members, y = op.members(x, -math.inf), op.apply(x)
    counts = torch.zeros(op.input_shape[1:])
    weights = torch.randn_like(members)
    back = torch.zeros_like(x)
    for (i, j), read in windows(op).items():
        assert bool(
            (op.real[:, i, j].nonzero().squeeze(1) == torch.tensor([t for t, *_ in read])).all()
        )
        largest = torch.stack([x[..., r, c] for _, r, c in read]).amax(0)
        assert bool((largest == y[..., i, j]).all())
        for tap, row, column in read:
            assert bool((members[..., tap, i, j] == x[..., row, column]).all())
            counts[row, column] += 1
            back[..., row, column] += weights[..., tap, i, j]
    assert op.overlap == int(counts.max())
    assert torch.allclose(op.spread(weights.unbind(-3)), back)
    # The constant is attained: where all windows that hold a pixel are led by it.
    moved = torch.zeros(1, *op.input_shape)
    moved[0, 0, *divmod(int(counts.argmax()), op.input_shape[2])] = 1.0
    ratio = float(op.apply(moved).norm())
    assert ratio == pytest.approx(op.lipschitz(2.0))


def box(op: MaxPool, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes of every kind: points, wide ones, half of one end, one that is above all others."""
    generator = torch.Generator().manual_seed(seed)
    shape = (6, *op.input_shape)
    low = torch.randn(shape, generator=generator, dtype=torch.float64)
    width = torch.rand(shape, generator=generator, dtype=torch.float64)
    width[0] *= 3.0
    width[1] *= 0.1
    width[2] *= (torch.rand(width[2].shape, generator=generator) < 0.5).double()
    low[3], width[3] = 0.0, width[3] * (width[3] > 0.6)  # behind a ReLU
    low[4, :, ::2] += 4.0
    return low, low + width


@pytest.mark.parametrize("name", POOLS)
def test_lines_hold_in_the_box_and_touch_it(name: str) -> None:
    op = POOLS[name]
    low, high = box(op, 0)
    below, above, intercept, _ = relax_pool(op, low, high)
    assert bool((below >= 0).all())
    assert bool((above >= 0).all())
    least, most = share_range(op, low, high)
    generator = torch.Generator().manual_seed(1)
    gaps = []
    for draw in range(200):
        share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
        z = low + (high - low) * (share.round() if draw % 2 else share)
        values, y = op.members(z, 0.0), op.apply(z)
        assert bool(((below * values).sum(-3) <= y + 1e-14).all())
        gap = (above * values).sum(-3) + intercept - y
        assert bool((gap >= -1e-14).all())
        gaps.append(gap)
        # Whoever is largest has a share of 1, and no one else of more than 0.
        leads = (op.members(z, -math.inf) == y.unsqueeze(-3)).double()
        assert bool((leads <= most).all())
        assert bool((leads >= least).all())
    if op.size == 4:  # windows of few corners: one of those tried is where the line is tight
        assert float(torch.stack(gaps).amin(0).amax()) < 1e-12
    # A member that is above all others leaves nothing open.
    leader = (least == 1.0) & (op.members(high - low, 0.0) > 0)
    assert bool(leader.any())
    assert bool((below[leader] == 1.0).all())
    assert torch.allclose(above[leader], torch.ones_like(above[leader]))
    assert bool((intercept[leader.any(-3)].abs() < 1e-12).all())


def test_lines_of_ends_that_are_not_finite_prove_nothing() -> None:
    op = POOLS["dense"]
    low, high = box(op, 0)
    high[0, 0, 1, 1] = math.inf
    low[1, 1, 0, 0] = math.nan
    intercept = relax_pool(op, low, high)[2]
    expected = torch.zeros(intercept.shape, dtype=torch.bool)
    expected[0, 0, :2, :2] = expected[1, 1, 0, 0] = True
    assert bool((intercept.isnan() == expected).all())


def _engine(kind: str, graph: Graph) -> Engine:
    return CoupledEngine(graph, steps=2) if kind == "coupled" else make_engine("native", graph)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("method", "norm"),
    [("crown", math.inf), *((m, 2.0) for m in ("crown", "crown-ibp", "alpha-crown", "coupled"))],
)
def test_bounds_withstand_attacks(name: str, method: str, norm: float) -> None:
    graph = trace_model(network(name), SHAPE)
    x, radii = points(SHAPE, 3), torch.tensor([0.01, 0.1, 0.8], dtype=torch.float64)
    if norm == math.inf:
        radii = radii / 4
    given = "sdp-crown" if method == "coupled" else method
    assert attack_relaxation(graph, _engine(method, graph), x, radii, norm, given) > 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_lipschitz_constants_withstand_attacks(name: str, norm: float) -> None:
    model, x = network(name), points(SHAPE, 2)
    graph = trace_model(model, SHAPE)
    for radius in (0.02, 0.3):
        assert attack_lipschitz(model, graph, "native", x, radius, norm) == 2
    assert global_lipschitz_bound(model, SHAPE, norm=norm) < math.inf


@pytest.mark.parametrize("name", NETWORKS)
def test_balls_hold_what_layers_move(name: str) -> None:
    graph = trace_model(network(name), SHAPE)
    x, radii = points(SHAPE, 3), torch.tensor([0.02, 0.2, 1.0], dtype=torch.float64)
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        move = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        move = move / move.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * radii.reshape(-1, 1, 1, 1)
        for found, value in zip(moved, forward_all(graph, x + move), strict=True):
            low, high = found.box
            assert bool(((value >= low - 1e-12) & (value <= high + 1e-12)).all())
            change = (value - found.centre).flatten(1)
            assert bool((change.norm(dim=1) <= found.reach * (1 + 1e-9) + 1e-12).all())
            needed = (change / found.mask.flatten(1).clamp_min(1e-300)).norm(dim=1)
            assert bool((needed <= found.ball * (1 + 1e-9) + 1e-9).all())


def test_each_member_that_may_be_the_largest_pays_for_every_window_it_is_in() -> None:
    """Four windows see all of four pixels, any of which may be the largest: 1 for each window."""
    layers = (nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    graph = trace_model(nn.Sequential(*layers).double(), (1, 2, 2))
    x, radius = torch.zeros(1, 1, 2, 2).double(), torch.ones(1).double()
    moved = ball_boxes(graph, layer_norms(graph), x, radius)
    found = first_variables(graph, moved, 1)
    (i,) = (i for i in graph.activations if ("lower", i) in found)
    found["charge", i] = torch.zeros(1, 1, 1, 2, 2).double()
    rows = torch.tensor([[[1.0, -1.0]]]).double()
    bound = bound_rows(graph, moved, rows, found, Prices())
    assert float(bound.curvature) == pytest.approx(4.0, rel=1e-6)


def test_charges_pass_a_pool_to_every_member_of_a_window() -> None:
    """Charges that a search likes prove what attacks cannot break: were they lost, it would."""
    graph = trace_model(network("charged"), SHAPE)
    x, radii = points(SHAPE, 2), torch.tensor([0.4, 1.2], dtype=torch.float64)
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    rows = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = first_variables(graph, moved, 3)
    for i in graph.activations:
        if ("lower", i) in found:
            like = moved[i].centre.unsqueeze(1)
            found["charge", i] = torch.zeros(2, 3, *like.shape[2:], dtype=like.dtype)

    def lowest(variables: Variables) -> Tensor:
        bound = bound_rows(graph, moved, rows, variables, Prices(30))
        value, slope = value_and_slope(bound, x)
        at = radii.unsqueeze(1)
        return value - at * slope - bound.curvature * at**2 / 2

    ascent = Ascent(found)
    before = lowest(found)
    ascent.climb(lowest, [1.0] * 60)
    low = lowest(ascent.variables).detach()
    assert bool((low > before).all())
    copies = [x.repeat(3, 1, 1, 1), radii.repeat(3)]
    ends = climb(
        lambda y: -torch.einsum("brk,rbk->rb", rows, forward_all(graph, y)[-1].unflatten(0, (3, 2)))
        .flatten(),
        *copies, 2.0, steps=30,
    )  # fmt: skip
    reached = torch.einsum("brk,rbk->br", rows, forward_all(graph, ends)[-1].unflatten(0, (3, 2)))
    assert bool((reached >= low - 1e-9).all())


@pytest.mark.parametrize(
    ("name", "side"), [("torchvision", "id"), ("signed", "ood"), ("first", "id")]
)
def test_certificates_of_all_methods_withstand_attacks(name: str, side: str) -> None:
    model, x = network(name), points(SHAPE, 2)
    threshold = middle_threshold(model, x)
    methods = "crown,crown-ibp,alpha-crown,branch,sdp-crown,lipschitz"
    result = certify(model, x, threshold, side=side, method=methods, max_radius=2.0, **QUICK)
    radii = result.other["radius_sdp_crown"], result.radius_lipschitz, result.radius_certified
    assert all(bool((r > 0).any()) for r in radii)
    assert attack_certificates(model, x, threshold, side, 2.0, result) > 0


def test_what_rounding_may_change_behind_a_pool() -> None:
    graph = trace_model(network("signed"), SHAPE)
    x = points(SHAPE, 3)
    values, single = forward_all(graph, x), forward_all(graph.to(torch.float32), x.float())
    for value, rough, error in zip(values, single, forward_errors(graph, values), strict=True):
        off = (rough.double() - value).abs()
        assert bool((off <= error / torch.finfo(torch.float64).eps * 2.0**-22 + 1e-6).all())


def test_auto_lirpa_refuses_such_a_pool_by_name() -> None:
    graph = trace_model(network("torchvision"), SHAPE)
    with pytest.raises(EngineError, match=r"layer '3' \(MaxPool2d\)"):
        make_engine("auto-lirpa", graph)


def test_pools_that_do_not_overlap_stay_trees() -> None:
    for layer in (nn.MaxPool2d(2), nn.MaxPool2d(3, ceil_mode=True), nn.MaxPool2d(1, 2)):
        graph = trace_model(nn.Sequential(layer, nn.Flatten()), SHAPE)
        assert not any(isinstance(node.op, MaxPool) for node in graph.nodes)


def test_coupled_bounds_take_every_pool_whole() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(27, 3))  # fmt: skip
    model = randomise(model, torch.Generator().manual_seed(2)).double().eval()
    tree, x = trace_model(model, SHAPE), points(SHAPE, 3)
    whole = with_whole_pools(model, tree)
    assert sum(isinstance(node.op, MaxPool) for node in whole.nodes) == 1
    assert torch.allclose(forward_all(whole, x)[-1], model(x))
    assert with_whole_pools(model, whole) is whole  # no layer of several nodes is left
    # A tree loses a factor a level of what the ball moves; the bound on the score says so.
    radii = torch.full((3,), 0.2, dtype=torch.float64)
    far = [ball_boxes(g, layer_norms(g), x, radii)[-1].reach for g in (whole, tree)]
    assert bool((far[0] < far[1]).all())
    threshold = middle_threshold(model, x)
    result = certify(model, x, threshold, method="sdp-crown", max_radius=2.0, **QUICK)
    assert attack_certificates(model, x, threshold, "id", 2.0, result) > 0
    for side, sign in (("id", 1.0), ("ood", -1.0)):
        bound = score_bound(model, x, 0.2, side=side, method="sdp-crown")
        for y in ball_points(x, radii, 2.0):
            assert bool((sign * -torch.logsumexp(model(y), 1) <= sign * bound).all())
