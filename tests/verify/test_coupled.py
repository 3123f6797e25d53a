"""Coupled bounds over ℓ2 balls: sound for any multipliers, no looser than λ = 0, found broken.

What is proven must hold for every choice of slopes, multipliers and shares, so they are drawn at
random here as well as searched; boxes, balls and prices are attacked by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from layers import LAYERS, conv, dense, linear
from problems import SMALL, Function, affine, build, climb, energy_of, exact_cases, points
from random_networks import random_network
from smooth_networks import NETWORKS as SMOOTH
from smooth_networks import build_smooth
from soundness import ROUNDING, attack_certificates, attack_relaxation, ball_points, magnitudes
from torch import Tensor, nn

from greg_cert.errors import EngineError, UsageError
from greg_cert.models import MaxMin
from greg_cert.verify import certify, score_bound
from greg_cert.verify.bounds.coupled import backward as coupled
from greg_cert.verify.bounds.coupled import ball_boxes as boxes_module
from greg_cert.verify.bounds.coupled import charges as charges_module
from greg_cert.verify.bounds.coupled import neurons as neurons_module
from greg_cert.verify.bounds.coupled.ascent import Ascent
from greg_cert.verify.bounds.coupled.backward import bisect_balls, bound_rows, first_variables
from greg_cert.verify.bounds.coupled.ball_boxes import Moved, ball_boxes, layer_norms
from greg_cert.verify.bounds.coupled.charges import Prices, ProvenPrices, largest_eigenvalue
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.bounds.coupled.neurons import Rows, Variables
from greg_cert.verify.bounds.native_relaxation import NativeRelaxation
from greg_cert.verify.bounds.region import Region
from greg_cert.verify.graph.ops import Activation, Add, Conv, Graph, Linear, forward_all
from greg_cert.verify.graph.rounding import absolute_terms
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.operators import band as band_module
from greg_cert.verify.operators.layers import as_convolution
from greg_cert.verify.radius.coupled import charging, one_ball, row_search
from greg_cert.verify.radius.coupled.charging import add_charges, charged_activations
from greg_cert.verify.radius.coupled.one_ball import CoupledRadius
from greg_cert.verify.radius.coupled.row_search import Boxes, CoupledEffort, Search
from greg_cert.verify.radius.goals import decision_goal
from greg_cert.verify.radius.problem import Batch, Problem
from greg_cert.verify.scorer import Margin, score_function

RADII = (0.02, 0.2, 1.0)
QUICK = {"coupled": CoupledEffort(5, 8), "rounds": 6, "attack_restarts": 1}
SMOOTHED = tuple(f"smooth {name}" for name in SMOOTH)
CERTIFIED = (
    *("mlp", "conv_batchnorm", "residual", "pre_activation", "concatenation", "leaky", "max_min"),
    *("average_pools", "max_pool_2", "relu_first", "smooth gelu", "smooth mixed", "random 5"),
)
CERTIFIED_OOD = ("mlp", "conv_batchnorm", "concatenation", "leaky", "max_min")
NETWORKS = (*SMALL, *SMOOTHED, "random 1", "random 2", "random 5", "random 8", "surely negative")


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name.startswith("random"):
        model, shape = random_network(int(name.split()[1]))
    elif name == "surely negative":
        generator = torch.Generator().manual_seed(3)
        model, shape = (
            nn.Sequential(
                nn.Linear(6, 8), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
            ),
            (6,),
        )
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (1.0 if p.ndim > 1 else 0.1))
            model[0].bias.fill_(-30.0)  # type: ignore[operator, union-attr]
            model[2].bias.copy_(-model[2].weight @ model[1](model[0].bias))  # type: ignore[operator, union-attr]
    elif name.startswith("smooth"):
        model, shape = build_smooth(name.split()[1])
    else:
        model, shape = build(name)
    return model.double().eval(), shape


def setting(name: str, count: int = 3) -> tuple[nn.Module, Graph, Tensor, Tensor]:
    """Model, graph, centres and radii."""
    model, shape = network(name)
    x = points(shape, count, seed=4)
    return model, trace_model(model, shape), x, torch.tensor(RADII[:count], dtype=x.dtype)


def simplex_row(graph: Graph, count: int) -> Tensor:
    """One probability row a sample, (B, 1, K)."""
    generator = torch.Generator().manual_seed(graph.num_classes)
    p = torch.rand(count, 1, graph.num_classes, generator=generator, dtype=torch.float64)
    return p / p.sum(2, keepdim=True)


FIRST = torch.tensor([[[1.0, 0.0]]]).double()  # the first of two logits


def first_by_charge(graph: Graph, x: Tensor, radii: Tensor, charge: Tensor) -> coupled.RowBound:
    """The bound of the first of two logits, with log λ of the last activation."""
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    found = first_variables(graph, moved, 1)
    found["charge", max(graph.activations)] = charge
    return bound_rows(graph, moved, FIRST, found, ProvenPrices())


def random_variables(graph: Graph, moved: Sequence[Moved], rows: Tensor, seed: int) -> Variables:
    """Any slopes, charges, shares and balls, some of them missing."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator, dtype=torch.float64)

    found = first_variables(graph, moved, rows.shape[1])
    found = {key: value + normal(value, 0.4) for key, value in found.items()}
    for i in graph.activations:
        like = moved[i].centre.unsqueeze(1)
        if ("lower", i) not in found:
            continue
        if seed % 3:
            found["charge", i] = normal(like, 1.5) - 1.0
        if seed % 3 != 1:
            found["ball", i] = normal(rows[:, :, 0]) - 1.0
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, (Conv, Linear)) and seed % 2:
            found["share", i] = normal(moved[node.inputs[0]].centre.unsqueeze(1), 0.7)
        if isinstance(node.op, Add) and seed % 2:
            found["join", i] = normal(joined(moved[i].centre))
    return found


def joined(centre: Tensor) -> Tensor:
    """Equal logits for the two operands of a sum, (B, 1, 2, *shape)."""
    return torch.stack([torch.zeros_like(centre)] * 2, 1).unsqueeze(1)


def searched_variables(
    graph: Graph, moved: Sequence[Moved], rows: Tensor, x: Tensor, radii: Tensor, kind: str
) -> Variables:
    """Multipliers that make the bound tight, so that a broken part shows: balls, or charges."""
    found = first_variables(graph, moved, 1)
    for i, mu in bisect_balls(graph, moved, rows, found).items():
        like = moved[i].centre.unsqueeze(1)
        if kind == "balls":
            found["ball", i] = mu
        else:
            found["charge", i] = mu.reshape(-1, 1, *[1] * (like.ndim - 2)).expand_as(like).clone()
    for i, node in enumerate(graph.nodes):
        if isinstance(node.op, Add) and kind == "charges":
            found["join", i] = joined(moved[i].centre)
    price = Prices()

    def lowest(variables: Variables) -> Tensor:
        bound = bound_rows(graph, moved, rows, variables, price)
        value, slope = coupled.value_and_slope(bound, x)
        at = radii.unsqueeze(1)
        return value - at * slope - bound.curvature * at**2 / 2

    ascent = Ascent(found)
    ascent.climb(lowest, [1.0] * 80)
    return ascent.variables


def proven(
    graph: Graph, x: Tensor, radii: Tensor, rows: Tensor, seed: int | str
) -> coupled.RowBound:
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    boxes = {i: moved[graph.nodes[i].inputs[0]].box for i in graph.activations}
    terms = absolute_terms(graph, boxes, x, radii)
    if isinstance(seed, str):
        variables = searched_variables(graph, moved, rows, x, radii, seed)
    else:
        variables = random_variables(graph, moved, rows, seed)
    return bound_rows(graph, moved, rows, variables, ProvenPrices(), terms)


def crossings(graph: Graph, x: Tensor, radii: Tensor, rows: Tensor, seed: int | str) -> int:
    """At how many points of the balls rows·f lies below its bound."""
    bound = proven(graph, x, radii, rows, seed)

    def excess(y: Tensor) -> Tensor:
        """Bound less value (B,), with the rounding of both allowed for."""
        logits = forward_all(graph, y)[-1]
        value = torch.einsum("brk,bk->br", rows, logits)
        change = (y - x).flatten(1)
        linear = bound.offset + torch.einsum("brd,bd->br", bound.slope.flatten(2), y.flatten(1))
        squared = change.square().sum(1, keepdim=True)
        slack = 1e-12 * (1 + bound.size + bound.curvature * squared) + bound.lost
        slack = slack + ROUNDING * magnitudes(graph, y)[-1].amax(1, keepdim=True)
        return (linear - bound.curvature / 2 * squared - slack - value).squeeze(1)

    tried = [*ball_points(x, radii, 2.0), climb(excess, x, radii, 2.0, steps=12)]
    return sum(int((excess(y) > 0).sum()) for y in tried)


@pytest.mark.parametrize("name", NETWORKS)
def test_boxes_and_balls_hold_every_value(name: str) -> None:
    _, graph, x, radii = setting(name)
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    tried = ball_points(x, radii, 2.0)

    def towards(i: int, sign: float) -> Tensor:
        return climb(lambda y: sign * forward_all(graph, y)[i].flatten(1).sum(1), x, radii, 2.0, 4)

    ends = [towards(i, sign) for i in graph.activations[:3] for sign in (1.0, -1.0)]
    for y in (*tried, *ends):
        sizes = magnitudes(graph, y)
        for found, value, size in zip(moved, forward_all(graph, y), sizes, strict=True):
            slack = ROUNDING * (1 + size)
            assert bool((value >= found.box[0] - slack).all())
            assert bool((value <= found.box[1] + slack).all())
            change = (value - found.centre).flatten(1).norm(dim=1)
            assert bool((change <= found.reach + slack.flatten(1).norm(dim=1)).all())


def test_boxes_know_what_intervals_do_not() -> None:
    """A row of n equal weights: an ℓ2 ball moves it by √n of what an ℓ∞ ball would."""
    model = nn.Sequential(nn.Linear(100, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    graph = trace_model(model, (100,))
    moved = ball_boxes(graph, layer_norms(graph), points((100,), 1), torch.ones(1).double())
    low, high = moved[1].box
    assert float(high - low) == pytest.approx(2 * math.sqrt(100), rel=1e-6)


def test_a_jump_moves_further_than_any_slope() -> None:
    """torch's softplus jumps by 2e-9 at 20: so far a ball moves it, however small it is."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(19.5)
    graph = trace_model(model, (1,))
    x, radius = torch.tensor([[0.5 - 1e-12]]).double(), torch.tensor([1e-11]).double()
    moved = ball_boxes(graph, layer_norms(graph), x, radius)
    before, after = (forward_all(graph, y)[2] for y in (x, x + radius))
    assert float(before - after) > 100 * float(radius)
    assert float(before - after) <= float(moved[2].reach)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_any_multipliers_are_sound(name: str, seed: int) -> None:
    _, graph, x, radii = setting(name)
    assert crossings(graph, x, radii, simplex_row(graph, len(x)), seed) == 0


@pytest.mark.parametrize("kind", ["balls", "charges"])
@pytest.mark.parametrize(
    "name", ["mlp", "conv", "leaky", "residual", "surely negative", "smooth gelu"]
)
def test_searched_multipliers_are_sound(name: str, kind: str) -> None:
    _, graph, x, radii = setting(name)
    assert crossings(graph, x, radii, simplex_row(graph, len(x)), kind) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_without_multipliers_it_is_crown_on_the_same_boxes(name: str) -> None:
    _, graph, x, radii = setting(name)
    rows = simplex_row(graph, len(x))
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    start = first_variables(graph, moved, 1)
    bound = bound_rows(graph, moved, rows, start, Prices())
    ours, slope = coupled.value_and_slope(bound, x)
    boxes = {i: moved[graph.nodes[i].inputs[0]].box for i in graph.activations}
    empty = torch.zeros(len(x), dtype=torch.bool)
    crown = NativeRelaxation(graph, boxes, region=Region(x, radii, 2.0), empty=empty)
    theirs, steep = crown.linear(rows)
    assert torch.allclose(slope, steep, rtol=1e-9, atol=1e-12)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    # The best ball multiplier of each layer can only gain on it.
    balls = {("ball", i): mu for i, mu in bisect_balls(graph, moved, rows, start).items()}
    with_balls = bound_rows(graph, moved, rows, {**start, **balls}, Prices())
    better, same = coupled.value_and_slope(with_balls, x)
    assert torch.allclose(same, slope)
    assert bool((better >= ours - 1e-9 * (1 + ours.abs())).all())


# Layers before the last activation, and how steep all of them are together.
TIGHT: dict[str, tuple[list[nn.Module], float]] = {
    "one layer": ([nn.Linear(4, 4)], 1.0),
    "a steep layer": ([nn.Linear(4, 4)], 3.0),
    "a sum": ([nn.Linear(4, 4), Function(lambda x: x + x)], 2.0),
    "a layer that is all alive": ([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)], 1.0),
    "sums of pairs": ([nn.Linear(4, 4), MaxMin(), nn.Linear(4, 4)], 1.0),
}


@pytest.mark.parametrize("kind", ["ball", "charge", "short of charge", "box"])
@pytest.mark.parametrize("name", TIGHT)
def test_where_the_bound_is_tight_every_constant_shows(name: str, kind: str) -> None:
    """The least −Σ ReLU(s·δ_i) over ‖δ‖ ≤ r is −s·r·√n, at equal δ_i, and the bound attains it:
    with slopes of ½ and the best multiplier; for one neuron, without any, by its box. It may not
    where a neuron in between carries on less than it is charged."""
    layers, steep = TIGHT[name]
    pairs = name == "sums of pairs"
    size, radius = (1 if kind == "box" and not pairs else 4), 0.5
    made: list[nn.Module] = []
    for layer in layers:
        made.append(nn.Linear(size, size) if isinstance(layer, nn.Linear) else layer)
    model = nn.Sequential(*made, nn.ReLU(), nn.Linear(size, 2)).double()
    alive = [m for m in made if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for m in alive:
            m.weight.copy_(torch.eye(size))
        alive[0].weight.mul_(steep if name == "a steep layer" else 1.0)
        if pairs:  # what differs within a pair is lost
            alive[0].weight.copy_((torch.eye(4) + torch.eye(4).roll(2, 0)) / 2)
        elif len(alive) > 1:
            alive[0].bias.fill_(10.0)
            alive[1].bias.fill_(-10.0)
        model[-1].weight[0] = -1.0  # type: ignore[index, operator]
    graph = trace_model(model, (size,))
    x, radii = torch.zeros(1, size).double(), torch.tensor([radius]).double()
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    found = first_variables(graph, moved, 1)
    balls = bisect_balls(graph, moved, FIRST, found)
    last = max(graph.activations)
    for i in graph.activations if "charge" in kind else ():  # alive ones hand it on, and a little
        like = moved[i].centre.unsqueeze(1)
        more = 1e-3 if kind == "charge" else -0.7
        found["charge", i] = balls[last].unsqueeze(2).expand_as(like) + more * (i != last)
    if kind == "ball":
        found["ball", last] = balls[last]
    bound = bound_rows(graph, moved, FIRST, found, ProvenPrices())
    value, slope = coupled.value_and_slope(bound, x)
    low = float(value - radius * slope - bound.curvature * radius**2 / 2)
    truth = -steep * radius * math.sqrt(size)
    assert low <= truth * (1 - 1e-9)
    if kind in ("ball", "charge") or (kind == "box" and not pairs):
        assert low >= 1.002 * truth


def test_the_curvature_is_that_of_the_dearest_input() -> None:
    """The least −Σ ReLU(s_i·δ_i) over ‖δ‖ ≤ r is −r‖s‖, and charges of c/s_i that each input pays
    for itself, at their mean and not their largest, would prove −½r(‖s‖ + Σs/√n)."""
    steep, radius = torch.tensor([0.1, 0.3, 1.0, 4.0]).double(), 0.5
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model[0].weight.copy_(steep.diag())
        model[2].weight[0] = -1.0
    graph = trace_model(model, (4,))
    x, radii = torch.zeros(1, 4).double(), torch.tensor([radius]).double()
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    found = first_variables(graph, moved, 1)
    charge = 2 / (2 * radius) / steep
    found["charge", 2] = charge.log().reshape(1, 1, 4)
    found["share", 1] = (charge * steep**2).log().reshape(1, 1, 4)
    bound = bound_rows(graph, moved, FIRST, found, ProvenPrices())
    value, slope = coupled.value_and_slope(bound, x)
    low = float(value - radius * slope - bound.curvature * radius**2 / 2)
    assert low <= -radius * float(steep.norm())
    paid = float((charge * steep**2).amax())
    assert float(bound.curvature) == pytest.approx(paid, rel=1e-2)


def test_scales_of_channels_count_squared() -> None:
    layers = (nn.Conv2d(2, 2, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
    graph = trace_model(model, (2, 1, 1))
    x, charge = torch.zeros(1, 2, 1, 1).double(), torch.zeros(1, 1, 2, 1, 1).double()
    bound = first_by_charge(graph, x, torch.ones(1).double(), charge)
    assert float(bound.curvature) == pytest.approx(9.0, rel=1e-3)


def test_charges_of_a_concatenation_go_to_their_own_operands() -> None:
    """Layers 2·I and 3·I, charged 1 and 5 an output, cost the input 4·1 + 9·5."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(2 * torch.eye(2))
        second.weight.copy_(3 * torch.eye(2))
    body = Function(lambda x, a, b: torch.cat([a(x), b(x)], 1), first, second)
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(4, 2)).double()
    graph = trace_model(model, (2,))
    charge = torch.tensor([[[1.0, 1.0, 5.0, 5.0]]]).double().log()
    bound = first_by_charge(graph, torch.zeros(1, 2).double(), torch.ones(1), charge)
    assert float(bound.curvature) == pytest.approx(49.0, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "steepest"),
    [(nn.Tanh(), 1 / math.cosh(0.5) ** 2), (nn.GELU(), 1.128904)],  # at 0.5, and at √2
)
def test_a_smooth_activation_passes_its_steepest_slope_squared(
    layer: nn.Module, steepest: float
) -> None:
    """A charge of 1 on what an activation of [0.5, 1.5] gives costs its input σ′² at most."""
    model = nn.Sequential(nn.Linear(1, 1), layer, nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for p in model.double().parameters():
            p.fill_(1.0 if p.ndim > 1 else 0.0)
    graph = trace_model(model, (1,))
    x, radius = torch.ones(1, 1).double(), torch.tensor([0.5])
    bound = first_by_charge(graph, x, radius, torch.zeros(1, 1, 1).double())
    assert float(bound.curvature) == pytest.approx(steepest**2, rel=2e-3)


@pytest.mark.parametrize("slope", [0.0, 0.2, -1.0])
@pytest.mark.parametrize("charged", [False, True])
def test_the_minimum_over_a_box_is_that_of_a_grid(slope: float, charged: bool) -> None:
    """Convex or concave, on one side of zero or both, at an end or between."""
    generator = torch.Generator().manual_seed(5)
    a, g, one, other, share = torch.randn(5, 1, 1, 4000, generator=generator).double()
    weight, charge = torch.rand(2, 1, 1, 4000, generator=generator).double() * 2
    low, high = torch.minimum(one, other), torch.maximum(one, other)
    z = low + share.sigmoid() * (high - low)
    op = Activation(slope)
    paid = charge if charged else None
    nothing, none = torch.zeros(1).double(), torch.zeros_like(z[0])
    source = Moved(z[0], none, (low[0], high[0]), nothing, none)
    found = neurons_module._minimiser(Rows(a, paid), g, weight, source, op)

    def value(t: Tensor) -> Tensor:
        spent = charge / 2 * (op.apply(t) - op.apply(z)) ** 2 if charged else 0.0
        return a * op.apply(t) - g * t + weight / 2 * (t - z) ** 2 - spent

    grid = torch.stack([low + k / 200 * (high - low) for k in range(201)])
    assert bool((value(found) <= value(grid).amin(0) + 1e-12).all())
    assert bool(((low <= found) & (found <= high)).all())


def test_the_best_ball_is_the_best_on_a_grid() -> None:
    _, graph, x, radii = setting("mlp")
    rows = simplex_row(graph, len(x))
    moved = ball_boxes(graph, layer_norms(graph), x, radii)
    start = first_variables(graph, moved, 1)
    balls = {("ball", i): mu for i, mu in bisect_balls(graph, moved, rows, start).items()}
    best = bound_rows(graph, moved, rows, {**start, **balls}, Prices()).offset
    for factor in (0.01, 0.5, 0.9, 1.1, 2.0, 100.0):
        for key in balls:
            moved_one = {**balls, key: balls[key] + math.log(factor)}
            other = bound_rows(graph, moved, rows, {**start, **moved_one}, Prices()).offset
            assert bool((other <= best + 1e-9 * (1 + best.abs())).all())


@pytest.mark.parametrize("name", SMALL)
def test_the_engine_holds_for_all_rows(name: str) -> None:
    _, graph, x, radii = setting(name)
    assert attack_relaxation(graph, CoupledEngine(graph, steps=3), x, radii, 2.0) > 0


# Prices.


@pytest.mark.parametrize(
    "name", ["linear, tall", "linear, wide", "uneven", "groups", "dilated, stride"]
)
def test_prices_are_above_the_largest_eigenvalue_and_near_it(name: str) -> None:
    generator, op = torch.Generator().manual_seed(1), LAYERS[name]
    out, shape = op.output_shape, as_convolution(op).input_shape
    shape = shape if isinstance(op, Conv) else shape[:1]
    rows = torch.rand(out, generator=generator, dtype=torch.float64)
    columns = torch.rand(shape, generator=generator, dtype=torch.float64)
    columns.view(-1)[0] = 0.0
    matrix = rows.flatten().unsqueeze(1) * dense(op) * columns.flatten()
    truth = float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    found = float(largest_eigenvalue(op, rows, columns))
    assert truth <= found <= truth * (1 + 1e-3)
    search = Prices()
    for _ in range(40):
        below = search(0, op, (rows**2)[None, None], columns[None], None)
    assert 0.9 * truth <= float(below) <= truth * (1 + 1e-9)


def test_prices_of_nothing_and_of_what_is_too_large() -> None:
    op = linear(2, 3)
    nothing = replace(op, weight=0 * op.weight)
    assert float(largest_eigenvalue(nothing, torch.ones(2).double(), torch.ones(3).double())) == 0.0
    large = conv((8, 8, 3, 3), (8, 99, 99), padding=(1, 1))
    ones = torch.ones(8, 99, 99).double()
    assert math.isinf(float(largest_eigenvalue(large, ones, ones)))
    infinite = replace(op, weight=math.inf * op.weight)
    assert math.isinf(float(largest_eigenvalue(infinite, ones[0, 0, :2], ones[0, 0, :3])))


def test_a_layer_that_is_too_large_to_be_priced_keeps_its_ball(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, graph, _, _ = setting("conv")
    assert charged_activations(graph) == set(graph.activations)
    monkeypatch.setattr(band_module, "LARGEST_BAND", 400)
    few = charged_activations(graph)
    assert few < set(graph.activations)
    model, x, gamma = certified_setting("conv")
    found = certify(model, x, gamma, method="sdp-crown", max_radius=2.0, **QUICK)
    assert (found.radius_certified > 0).any()
    attack_certificates(model, x, gamma, "id", 2.0, found)


def test_charges_have_a_limit_of_work_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheapest first: those that still fit are a part of those that fit a larger limit."""
    _, graph, _, _ = setting("residual")
    limits = (0.0, *(10 ** (k / 5) for k in range(10, 40)), 1e12)
    found = []
    for limit in limits:
        monkeypatch.setattr(charging, "_WORK", limit)
        found.append(charged_activations(graph))
    assert all(few <= more for few, more in pairwise(found))
    assert found[0] == frozenset()
    assert found[-1] == set(graph.activations)
    assert len({len(f) for f in found}) > 2


def test_charges_that_fall_behind_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, gamma = certified_setting("residual")
    graph = trace_model(model, tuple(x.shape[1:]))
    logits = model(x).detach()
    goal = decision_goal("energy", Margin(gamma, "id"), logits)
    guess, known = torch.full((2, len(x)), 0.01, dtype=x.dtype)

    def radii(charged: bool) -> Tensor:
        prove = CoupledRadius(Problem(None, graph, max_radius=2.0), CoupledEffort(3, 4))
        if not charged:
            prove._charged = frozenset()
        return prove(Batch(x, logits, guess, known), goal)

    with_charges, without = radii(True), radii(False)
    assert not torch.equal(with_charges, without)
    monkeypatch.setattr(row_search, "_BEHIND", 1e9)
    assert torch.equal(radii(True), without)


@pytest.mark.parametrize("edge", [0.06, 0.37, 1.1])
def test_a_search_ends_before_a_cliff(edge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a bound reaches ten times a ball, and nowhere beyond the edge."""
    model, x, gamma = certified_setting("mlp")
    graph, logits = trace_model(model, (5,)), model(x).detach()
    goal = decision_goal("energy", Margin(gamma, "id"), logits)

    def fallen(self: object, members: Tensor, ball: Tensor, rates: list[float]) -> Tensor:
        return torch.where(ball < edge, 10 * ball, 0.0)

    monkeypatch.setattr(Search, "climb", fallen)
    monkeypatch.setattr(Search, "_settled", lambda self, ball: ball)
    search = Search(graph, Boxes(graph), frozenset(), Batch(x, logits, torch.ones(len(x))), goal)
    ball = search.run(
        *(torch.full((len(x),), r).double() for r in (0.1, 2.0)), CoupledEffort(12, 1)
    )
    assert bool((ball > 0.9 * edge).all())
    assert bool((ball < 1.05 * edge).all())
    assert bool(search.at_cliff.all())


# Certificates.


def certified_setting(name: str) -> tuple[nn.Module, Tensor, float]:
    model, shape = network(name)
    x = points(shape, 5, seed=31)
    scores = energy_of(model, x).sort().values
    return model, x, float((scores[2] + scores[3]) / 2)


@pytest.mark.parametrize(
    ("name", "side"),
    [*((name, "id") for name in CERTIFIED), *((name, "ood") for name in CERTIFIED_OOD)],
)
def test_certificates_hold(name: str, side: str) -> None:
    model, x, gamma = certified_setting(name)
    found = certify(model, x, gamma, side=side, method="sdp-crown", max_radius=2.0, **QUICK)
    assert torch.equal(found.radius_certified, torch.as_tensor(found.other["radius_sdp_crown"]))
    attack_certificates(model, x, gamma, side, 2.0, found)


@pytest.mark.parametrize("score", ["max_logit", "max_softmax", "absent_class"])
@pytest.mark.parametrize("side", ["id", "ood"])
def test_certificates_of_every_score_hold(score: str, side: str) -> None:
    model, x, _ = certified_setting("conv")
    value = score_function(model, score)
    scores = value(x).detach()
    gamma = float(scores.median()) + 1e-6
    found = certify(
        model, x, gamma, side=side, score=score, method="sdp-crown", max_radius=2.0, **QUICK
    )
    assert (found.radius_certified > 0).any()
    assert (found.radius_certified <= found.radius_attack).all()
    sign = 1.0 if side == "id" else -1.0
    rows = found.radius_certified > 0
    radius = found.radius_certified[rows] * (1 - 1e-9)
    worst = value(climb(lambda y: sign * value(y), x[rows], radius, 2.0)).detach()
    assert bool((worst <= gamma).all()) if side == "id" else bool((worst > gamma).all())


def test_certificates_of_the_class_hold() -> None:
    model, x, gamma = certified_setting("mlp")
    labels = model(x).argmax(1)
    found = certify(model, x, gamma, labels=labels, method="sdp-crown", max_radius=2.0, **QUICK)
    alone = certify(model, x, gamma, method="sdp-crown", max_radius=2.0, **QUICK)
    assert (found.radius_certified <= alone.radius_certified + 1e-9).all()
    rows = found.radius_certified > 0
    assert rows.any()
    assert (found.radius_certified <= found.radius_attack).all()


@pytest.mark.parametrize("case", sorted(exact_cases()))
def test_affine_radii_are_exact(case: str) -> None:
    exact = exact_cases()[case]
    truth = exact.radius("id", 2.0)
    found = certify(
        exact.model, exact.inputs, exact.threshold, method="sdp-crown", max_radius=5.0,
        coupled=CoupledEffort(30, 10), rounds=30, tolerance=1e-9,
    )  # fmt: skip
    assert (found.radius_certified <= truth.clamp(max=5.0) * (1 + 1e-9)).all()
    if case.startswith("affine"):
        assert torch.allclose(found.radius_certified, truth.clamp(max=5.0), rtol=2e-2, atol=1e-6)


def kink() -> tuple[nn.Module, float]:
    """One input at 0, whose first logit is flat up to ½ and crosses at 1, and γ."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for p, values in zip(
            model.parameters(), ([[1.0]], [-0.5], [[-4.0], [0.0]], [5.0, -100.0]), strict=True
        ):
            p.copy_(torch.tensor(values))
    return model, -3.0


def test_no_radius_goes_beyond_the_ball_that_it_was_proven_for() -> None:
    model, gamma = kink()
    graph, x = trace_model(model, (1,)), torch.zeros(1, 1).double()
    logits = model(x).detach()
    goal = decision_goal("energy", Margin(gamma, "id"), logits)
    radius = CoupledRadius(Problem(None, graph, max_radius=9.0), CoupledEffort(1, 1))
    found = radius(Batch(x, logits, torch.full((1,), 0.5).double()), goal)
    assert 0 < float(found) <= 1.0


def test_nothing_is_proven_by_what_the_search_took_for_prices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, gamma = certified_setting("mlp")
    given = {"method": "sdp-crown", "attack": False, "max_radius": 2.0, **QUICK}
    honest = certify(model, x, gamma, **given).radius_certified
    monkeypatch.setattr(
        one_ball.ProvenPrices, "__call__", lambda s, i, o, c, *_: c[:, :, 0] * math.inf
    )
    found = certify(model, x, gamma, **given).radius_certified
    assert (found <= honest).all()  # CROWN's own bound may be as good
    assert (found < 0.97 * honest).any()


def test_it_proves_more_than_crown_where_many_neurons_share_a_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 4)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise * (1.4 / p.shape[-1]) ** 0.5 if p.ndim > 1 else 0.1 * noise)
    x = points((60,), 4)
    gamma = float(energy_of(model, x).max()) + 0.5
    found = certify(model, x, gamma, method="crown,sdp-crown", max_radius=4.0, cuts=0)
    crown, ours = (torch.as_tensor(found.other[f"radius_{m}"]) for m in ("crown", "sdp_crown"))
    assert (ours > 1.3 * crown).all()
    assert (ours <= found.radius_attack).all()


def test_score_bounds_hold_and_are_tighter_than_crown_ibp() -> None:
    model, shape = network("conv")
    x = points(shape, 4)
    for side, sign in (("id", 1.0), ("ood", -1.0)):
        bound = score_bound(model, x, 0.3, side=side, method="sdp-crown")

        def towards(y: Tensor, sign: float = sign) -> Tensor:
            return -sign * model(y).logsumexp(1)

        worst = climb(towards, x, torch.full((4,), 0.3), 2.0)
        assert bool((sign * energy_of(model, worst) <= sign * bound).all())
        loose = score_bound(model, x, 0.3, side=side, method="crown-ibp")
        assert bool((sign * bound <= sign * loose + 1e-9).all())


def test_linf_and_other_engines_are_refused_with_a_reason() -> None:
    model, x, gamma = certified_setting("mlp")
    with pytest.raises(UsageError, match=r"norm 2 for the method sdp-crown.*inf.*all neurons"):
        certify(model, x, gamma, method="sdp-crown", norm=math.inf)
    with pytest.raises(UsageError, match="norm 2"):
        score_bound(model, x, 0.1, method="sdp-crown", norm=math.inf)
    with pytest.raises(EngineError, match="engine 'native' for the method sdp-crown"):
        certify(model, x, gamma, method="sdp-crown", engine="auto-lirpa")


def test_a_row_does_not_depend_on_its_batch() -> None:
    model, x, gamma = certified_setting("residual")
    together = certify(model, x, gamma, method="sdp-crown", attack=False, **QUICK)
    for i in (0, len(x) - 1):
        alone = certify(model, x[i : i + 1], gamma, method="sdp-crown", attack=False, **QUICK)
        assert alone.radius_certified == pytest.approx(together.radius_certified[i : i + 1], 1e-2)


# Each part, broken, is found.


def broken_balls(share: float) -> Callable[..., list[Moved]]:
    return lambda *a, **k: [
        replace(m, ball=share * m.ball, mask=share * m.mask)
        for m in boxes_module.ball_boxes(*a, **k)
    ]


def broken_boxes(*args: object, **kwargs: object) -> list[Moved]:
    found = boxes_module.ball_boxes(*args, **kwargs)  # type: ignore[arg-type]
    return [
        replace(m, box=tuple(m.centre + 0.5 * (end - m.centre) for end in m.box)) for m in found
    ]


def broken_centres(*args: object, **kwargs: object) -> list[Moved]:
    found = boxes_module.ball_boxes(*args, **kwargs)  # type: ignore[arg-type]
    return [replace(m, centre=m.box[1]) for m in found]


class Cheap(charges_module.ProvenPrices):
    def __call__(self, *args: object) -> Tensor:
        return 0.02 * super().__call__(*args)  # type: ignore[arg-type]


BROKEN = {
    "balls": ("ball_boxes", broken_balls(0.3)),
    "boxes": ("ball_boxes", broken_boxes),
    "centres": ("ball_boxes", broken_centres),
    "prices": ("ProvenPrices", Cheap),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_part_is_found(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = BROKEN[part]
    monkeypatch.setitem(globals(), name, wrong)
    found = 0
    for case in ("mlp", "conv", "leaky"):
        _, graph, x, radii = setting(case)
        rows = simplex_row(graph, len(x))
        found += sum(crossings(graph, x, radii, rows, kind) for kind in ("balls", "charges"))
    assert found > 0


def test_norms_from_below_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes_module, "operator_norm", lambda op: 0.1)
    failed = 0
    for name in ("mlp", "conv"):
        try:
            test_boxes_and_balls_hold_every_value(name)
        except AssertionError:
            failed += 1
    assert failed


def test_a_wrong_minimum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum over one side of zero alone is too high."""
    honest = neurons_module._minimiser

    def one_sided(*args: object) -> Tensor:
        t = honest(*args)  # type: ignore[arg-type]
        high = args[3].box[1].unsqueeze(1)  # type: ignore[attr-defined]
        return torch.maximum(t, torch.minimum(torch.zeros_like(t), high))

    monkeypatch.setattr(neurons_module, "_minimiser", one_sided)
    _, graph, x, radii = setting("mlp")
    assert sum(crossings(graph, x, radii, simplex_row(graph, 3), s) for s in range(6)) > 0


@pytest.mark.parametrize("name", ["mlp", "conv", "leaky"])
def test_a_proof_is_never_below_the_one_without_multipliers_on_its_boxes(name: str) -> None:
    model, x, gamma = certified_setting(name)
    graph = trace_model(model, tuple(x.shape[1:]))
    goal = decision_goal("energy", Margin(gamma, "id"), model(x).detach())
    radius = CoupledRadius(Problem(None, graph, max_radius=2.0), CoupledEffort(1, 1))
    radii = torch.full((len(x),), 0.05, dtype=torch.float64)
    moved = radius.boxes(x, radii)
    rows = model(x).detach().softmax(1).unsqueeze(1)
    weights = rows.log()
    spoilt = random_variables(graph, moved, rows, seed=4)
    found = radius._prove(x, radii, goal, {**spoilt, row_search.WEIGHTS: weights})
    pre = {i: moved[graph.nodes[i].inputs[0]].box for i in graph.activations}
    nothing = torch.zeros(len(x), dtype=torch.bool)
    terms = absolute_terms(graph, pre, x, radii)
    crown = NativeRelaxation(graph, pre, terms, region=Region(x, radii, 2.0), empty=nothing)
    value, slope = crown.linear(rows)
    margin = value - (rows * weights).sum(2) + gamma
    expected = (margin / slope).clamp_min(0.0).squeeze(1)
    assert (expected > 0).any()
    assert (found >= expected * (1 - 1e-6)).all()


def test_flat_networks_and_single_logits() -> None:
    w, b = torch.zeros(2, 4).double(), torch.tensor([1.0, 0.0]).double()
    found = certify(affine(w, b), points((4,), 2), 0.0, method="sdp-crown", max_radius=3.0)
    assert torch.allclose(found.radius_certified, torch.full((2,), 3.0).double())


def residual(skip: float, branch: float, count: int = 8) -> tuple[Graph, Tensor, Tensor]:
    """−Σ|skip·x_i + branch·x_i| by ReLU of either sign, a centre at 0, and the row."""

    both = torch.cat([torch.eye(count), -torch.eye(count)])
    layers = [nn.Linear(count, 2 * count, bias=False) for _ in range(2)]
    head = nn.Linear(2 * count, 2, bias=False)
    with torch.no_grad():
        for layer, scale in zip(layers, (skip, branch), strict=True):
            layer.weight.copy_(scale * both)
        head.weight.copy_(torch.tensor([[-1.0], [0.0]]).expand(2, 2 * count))
    body = Function(lambda x, skip, branch: skip(x) + branch(x), *layers)
    model = nn.Sequential(body, nn.ReLU(), head).double().eval()
    return trace_model(model, (count,)), torch.zeros(1, count).double(), FIRST


def test_a_charge_is_split_over_a_sum_by_any_weights() -> None:
    """λ on z = a·x + b·x costs λ·(a²/w + b²/(1 − w)), and no less than λ·(a + b)²."""
    graph, x, rows = residual(3.0, 1.0)
    add = next(i for i, node in enumerate(graph.nodes) if isinstance(node.op, Add))
    moved = ball_boxes(graph, layer_norms(graph), x, torch.tensor([0.5]).double())
    start = first_variables(graph, moved, 1)
    for i in graph.activations:
        start["charge", i] = torch.full((1, 1, 16), math.log(0.7)).double()
    bound = bound_rows(graph, moved, rows, start, ProvenPrices())
    assert float(bound.curvature) == pytest.approx(2 * 0.7 * 2 * (9 + 1), rel=1e-3)
    for weight in (0.2, 0.5, 0.75, 0.9):
        logits = torch.tensor([weight, 1 - weight]).double().log()
        start["join", add] = logits.reshape(1, 1, 2, 1).repeat(1, 1, 1, 16)
        found = float(bound_rows(graph, moved, rows, start, ProvenPrices()).curvature)
        assert found == pytest.approx(2 * 0.7 * (9 / weight + 1 / (1 - weight)), rel=1e-3)
        assert found >= 2 * 0.7 * 16


def test_a_search_splits_a_charge_as_its_operands_move_and_gains() -> None:
    """The drop is 4·r·√n; equal weights find √(20)·r·√n."""
    graph, x, rows = residual(3.0, 1.0)
    add = next(i for i, node in enumerate(graph.nodes) if isinstance(node.op, Add))
    radii, norms = torch.tensor([0.2]).double(), layer_norms(graph)
    moved = ball_boxes(graph, norms, x, radii)
    start = first_variables(graph, moved, 1)
    balls = {i: torch.zeros(1, 1).double() for i in graph.activations}
    add_charges(graph, norms, frozenset(graph.activations), moved, balls, start)
    weights = start["join", add].softmax(2)
    assert torch.allclose(weights[0, 0, :, 0], torch.tensor([0.75, 0.25]).double(), rtol=1e-2)
    bound = proven(graph, x, radii, rows, "charges")
    drop = float(bound.slope.norm() * radii + bound.curvature / 2 * radii**2 - bound.offset)
    truth = 4 * 0.2 * math.sqrt(8)
    assert truth <= drop <= 1.08 * truth


def test_weights_of_a_sum_above_one_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x, rows = residual(3.0, 1.0)
    radii = torch.tensor([0.2]).double()
    assert crossings(graph, x, radii, rows, "charges") == 0
    honest = coupled._split

    def cheap(*args: object) -> list[Tensor | None]:  # by weights of sum 1.5
        return [None if c is None else c / 1.5 for c in honest(*args)]  # type: ignore[arg-type]

    monkeypatch.setattr(coupled, "_split", cheap)
    assert crossings(graph, x, radii, rows, "charges") > 0


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_layer_passes_on_covers_its_charge_for_every_change(shared: bool) -> None:
    """Also where a neuron is less steep than 1, or steeper: a charge is on changes as they are."""
    generator = torch.Generator().manual_seed(2)
    op = Linear(torch.randn(6, 9, generator=generator).double(), torch.zeros(6).double())
    mask = torch.tensor([0.0, 0.1, 0.3, 1.0, 1.13, 1.0, 0.1, 0.0, 1.0]).double().unsqueeze(0)
    charge = torch.rand(1, 1, 6, generator=generator, dtype=torch.float64)
    zero = torch.zeros_like(mask)
    moved = Moved(zero, zero, (zero, zero), torch.ones(1).double(), mask)
    variables: Variables = {}
    if shared:
        variables["share", 0] = torch.randn(1, 1, 9, generator=generator).double()
    passed, _ = coupled._passed(0, op, charge, moved, variables, ProvenPrices())
    moves = torch.randn(500, 9, generator=generator).double() * (mask > 0)
    weighted = charge[0, 0].sqrt().unsqueeze(1) * op.weight * (mask[0] > 0)
    moves = torch.cat([moves, torch.linalg.svd(weighted).Vh[:3] * (mask > 0)])
    spent = (charge[0] * (moves @ op.weight.T) ** 2).sum(1)
    paid = (passed[0] * moves**2).sum(1)
    assert bool((spent <= paid * (1 + 1e-12)).all())
    assert bool((passed[0, 0][mask[0] == 0] == 0).all())


def test_a_configuration_that_asks_for_it_in_linf_is_refused() -> None:
    from greg_cert.config import VerifyConfig

    assert VerifyConfig(method="sdp-crown", norm="2").norm_value == 2.0
    with pytest.raises(ValueError, match="norm 2 for the method sdp-crown"):
        VerifyConfig(method=("crown", "sdp-crown"), norm="inf")
